# The trainer: an agent that leases runs, and libtorch. Mount the data folder at /data and the worker token at
# /run/secrets/worker.token. CPU only; a GPU image needs the whole torch wheel and is not written yet.
# First draft: not yet built in CI.
#
#   docker build -f docker/trainer.Dockerfile -t causeway-trainer .

FROM rust:1.95-bookworm AS build
RUN apt-get update && apt-get install -y --no-install-recommends python3 python3-pip python3-venv && rm -rf /var/lib/apt/lists/*
WORKDIR /build
COPY . .
RUN python3 setup/install.py libtorch
RUN cargo build --release --locked -p causeway-trainer

FROM debian:12-slim
RUN useradd --system --create-home --home-dir /var/lib/causeway causeway
COPY --from=build /build/.deps/libtorch/lib /opt/libtorch/lib
COPY --from=build /build/target/release/causeway-trainer /usr/local/bin/causeway-trainer
ENV LD_LIBRARY_PATH=/opt/libtorch/lib
USER causeway
VOLUME /var/lib/causeway
CMD ["causeway-trainer", "work", "--state", "/var/lib/causeway", "--data", "/data", \
     "--token-file", "/run/secrets/worker.token"]
