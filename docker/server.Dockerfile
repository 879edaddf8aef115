# The server: API, scheduler and dashboard. It needs a Postgres (DATABASE_URL) and a folder for blobs and tokens.
# It listens for other machines, so it also needs CAUSEWAY_TLS_CERT and CAUSEWAY_TLS_KEY, or, behind a proxy or on a network
# that is trusted, CAUSEWAY_INSECURE_HTTP=true. First draft: not yet built in CI.
#
#   docker build -f docker/server.Dockerfile -t causeway-server .

FROM node:22-bookworm-slim AS web
WORKDIR /build/web
COPY web/package.json web/package-lock.json ./
RUN npm ci
COPY web ./
RUN npm run build

FROM rust:1.95-bookworm AS build
WORKDIR /build
COPY . .
COPY --from=web /build/web/dist web/dist
ENV SQLX_OFFLINE=true
RUN cargo build --release --locked -p causeway-server

FROM debian:12-slim
RUN useradd --system --create-home --home-dir /var/lib/causeway causeway
COPY --from=build /build/target/release/causeway /usr/local/bin/causeway
USER causeway
VOLUME /var/lib/causeway
EXPOSE 7411
ENV CAUSEWAY_STATE=/var/lib/causeway/state CAUSEWAY_LISTEN=0.0.0.0:7411
CMD ["causeway", "serve"]
