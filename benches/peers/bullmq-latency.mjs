// bullmq-latency.mjs CONCURRENCY COUNT RATE: from add to the start of the job, at RATE jobs a second.
import { setTimeout as sleep } from 'node:timers/promises';
import { Queue, Worker } from 'bullmq';
import { args, redis, report } from './common.mjs';

const [concurrency, count, rate] = args;
const queue = new Queue('latency', { connection: redis, defaultJobOptions: { removeOnComplete: true } });
const added = [];
const waits = [];
let finish;
const all = new Promise((resolve) => { finish = resolve; });
const worker = new Worker('latency', async ({ data: { i } }) => {
  waits.push(performance.now() - added[i]);
  if (waits.length === count) finish();
}, { connection: redis, concurrency });
await Promise.all([queue.waitUntilReady(), worker.waitUntilReady()]);
await sleep(1000);

await report(async () => {
  const began = performance.now();
  const adds = [];
  for (let i = 0; i < count; i++) {
    const due = began + (i * 1000) / rate;
    while (performance.now() < due) await sleep(Math.max(0, due - performance.now()));
    added[i] = performance.now();
    adds.push(queue.add('run', { i }));
  }
  await Promise.all([...adds, all]);
  waits.sort((a, b) => a - b);
  const rank = (share) => waits[Math.ceil(count * share) - 1];
  return { p50_ms: rank(0.5), p99_ms: rank(0.99) };
});
