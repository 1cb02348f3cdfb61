// bullmq-runs.mjs CONCURRENCY COUNT: drains jobs that wait and have no work.
import { Queue, Worker } from 'bullmq';
import { args, redis, report } from './common.mjs';

const [concurrency, count] = args;
const queue = new Queue('runs', { connection: redis, defaultJobOptions: { removeOnComplete: true } });
for (let from = 0; from < count; from += 1000) {
  await queue.addBulk(Array.from({ length: 1000 }, (_, i) => ({ name: 'run', data: { i: from + i } })));
}
const worker = new Worker('runs', async () => {}, { connection: redis, concurrency, autorun: false });
await worker.waitUntilReady();

await report(() => new Promise((resolve, reject) => {
  let done = 0;
  worker.on('completed', () => { if (++done === count) resolve({ count }); });
  worker.on('error', reject);
  worker.run().catch(reject);
}));
