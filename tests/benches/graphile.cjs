// graphile-worker on the Postgres behind SOCKET: jobs that do nothing, and how soon one that was just added begins.
//
//     node graphile.cjs SOCKET JOBS TIMED WAITING…  ->  a JSON line a figure
//
// One process, its tasks in it, as its documentation has it; no HTTP, no leases, no fences.

const { Logger, makeWorkerUtils, run } = require("graphile-worker");
const { Pool } = require("pg");

const [socket, jobs, timed, ...waiting] = process.argv.slice(2);
const pgPool = new Pool({ host: socket, user: "causeway", database: "postgres", max: 20 });
const common = { pgPool, noHandleSignals: true, logger: new Logger(() => () => {}) };

function report(bench, value, unit, what) {
  console.log(JSON.stringify({ bench, value, unit, what }));
}

async function throughput(utils, count, concurrency) {
  const start = performance.now();
  const specs = Array.from({ length: count }, () => ({ identifier: "noop", payload: {} }));
  for (let from = 0; from < count; from += 1000) {
    await utils.addJobs(specs.slice(from, from + 1000));
  }
  const added = (count / (performance.now() - start)) * 1e3;
  report("graphile_added", added, "jobs/s", "a thousand at a time");
  let left = count;
  let done;
  const all = new Promise((resolve) => (done = resolve));
  const from = performance.now();
  const runner = await run({
    ...common,
    concurrency,
    taskList: { noop: async () => void (--left === 0 && done()) },
  });
  await all;
  await runner.stop(); // the last ones are marked as done
  const what = `graphile-worker on the same Postgres: ${count} jobs that wait already, concurrency ${concurrency}`;
  report("graphile_jobs", (count / (performance.now() - from)) * 1e3, "jobs/s", what);
}

async function pickUp(utils, count, workers) {
  const times = [];
  let began;
  const taskList = { ping: async () => began(performance.now()) };
  const runner = await run({ ...common, concurrency: workers, taskList });
  await new Promise((resolve) => setTimeout(resolve, 500));
  for (let at = 0; at < count; at++) {
    const begins = new Promise((resolve) => (began = resolve));
    const sent = performance.now();
    await utils.addJob("ping", {});
    times.push((await begins) - sent);
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
  await runner.stop();
  times.sort((a, b) => a - b);
  for (const [name, share] of [["p50", 0.5], ["p95", 0.95], ["p99", 0.99]]) {
    const what = `graphile-worker: from adding a job until it begins, concurrency ${workers}`;
    report(`graphile_pickup_${workers}_${name}`, times[Math.floor(share * (count - 1))], "ms", what);
  }
}

async function main() {
  const utils = await makeWorkerUtils(common);
  await utils.migrate();
  for (const workers of waiting) {
    await pickUp(utils, Number(timed), Number(workers));
  }
  await throughput(utils, Number(jobs), 16);
  await utils.release();
  await pgPool.end();
}

main().catch((error) => {
  console.error(error);
  process.exit(1);
});
