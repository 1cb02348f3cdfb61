// bullmq-users.mjs BATCH: stamps all users with one unordered bulkWrite for each batch.
import { Queue, Worker } from 'bullmq';
import { args, connectUsers, redis, report } from './common.mjs';

const [batch] = args;
const { users } = await connectUsers();

async function stamp(ids) {
  const lastSynced = new Date();
  await users.bulkWrite(
    ids.map((_id) => ({ updateOne: { filter: { _id }, update: { $set: { lastSynced } } } })),
    { ordered: false },
  );
}

async function sync(job) {
  const total = await users.estimatedDocumentCount();
  let processed = 0;
  let ids = [];
  const flush = async () => {
    await stamp(ids);
    processed += ids.length;
    ids = [];
    await job.updateProgress(Math.round((processed / total) * 100));
  };
  for await (const user of users.find({}, { sort: { _id: 1 }, batchSize: batch })) {
    ids.push(user._id);
    if (ids.length === batch) await flush();
  }
  if (ids.length) await flush();
  return processed;
}

const queue = new Queue('users', { connection: redis });
const worker = new Worker('users', sync, { connection: redis });
await Promise.all([queue.waitUntilReady(), worker.waitUntilReady(), users.estimatedDocumentCount()]);

await report(() => new Promise((resolve, reject) => {
  worker.on('completed', (_job, count) => resolve({ count }));
  worker.on('failed', (_job, error) => reject(error));
  queue.add('full', {}).catch(reject);
}));
