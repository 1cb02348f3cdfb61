// bull-users.mjs PAGE: stamps all users, a page at a time, with one update for each user.
import Bull from 'bull';
import { args, connectUsers, redis, report } from './common.mjs';

const [size] = args;
const { users } = await connectUsers();
const queue = new Bull('user-sync', { redis, defaultJobOptions: { removeOnComplete: 10, removeOnFail: 20 } });

queue.process(async (job) => {
  const total = await users.estimatedDocumentCount();
  let processed = 0;
  let last;
  for (;;) {
    const page = await users.find(last ? { _id: { $gt: last } } : {}).sort({ _id: 1 }).limit(size).toArray();
    if (page.length === 0) return processed;
    const lastSynced = new Date();
    const stamp = ({ _id }) => users.updateOne({ _id }, { $set: { lastSynced } });
    const results = await Promise.allSettled(page.map(stamp));
    processed += results.filter(({ status }) => status === 'fulfilled').length;
    last = page.at(-1)._id;
    await job.progress(Math.round((processed / total) * 100));
  }
});
await Promise.all([queue.isReady(), users.estimatedDocumentCount()]);

await report(() => new Promise((resolve, reject) => {
  queue.on('completed', (_job, count) => resolve({ count }));
  queue.on('failed', (_job, error) => reject(error));
  queue.add({}).catch(reject);
}));
