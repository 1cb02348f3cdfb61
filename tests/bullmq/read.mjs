// What BullMQ's getters and Bull Board tell of a queue, as JSON: node read.mjs REDIS_URL PREFIX QUEUE
import { createBullBoard } from "@bull-board/api";
import { BullMQAdapter } from "@bull-board/api/bullMQAdapter";
import { Queue, Worker } from "bullmq";
import Redis from "ioredis";

const [url, prefix, name] = process.argv.slice(2);
setTimeout(() => process.exit(1), 60_000).unref();
const PAGE = 2;
const connection = new Redis(url, { maxRetriesPerRequest: null });
const queue = new Queue(name, { connection, prefix });

/** Bull Board without a web server: calls its routes as one would. */
function board() {
  const served = {};
  const adapter = new Proxy({}, {
    get: (_, call) => (value) => { served[call] = value; return adapter; },
  });
  createBullBoard({ queues: [new BullMQAdapter(queue, { readOnlyMode: true })], serverAdapter: adapter });
  return async (route, params, query) => {
    const { handler } = served.setApiRoutes.find((api) => api.route === route && [api.method].flat().includes("get"));
    const answer = await handler({ queues: served.setQueues, params, query, headers: {} });
    return answer.body;
  };
}

const ask = board();
const states = ["waiting", "active", "delayed", "completed", "failed", "paused"];
const told = { counts: await queue.getJobCounts(...states), paused: await queue.isPaused(), jobs: {}, pages: {}, board: {} };
for (const state of states) {
  const jobs = await queue.getJobs([state], 0, -1);
  told.jobs[state] = [];
  for (const job of jobs) {
    const { id, name, data, opts, progress, timestamp, delay, attemptsMade, processedOn, finishedOn, failedReason, returnvalue, stacktrace, repeatJobKey } =
      await queue.getJob(job.id);
    told.jobs[state].push({
      id, name, data, opts, progress, timestamp, delay, attemptsMade, processedOn, finishedOn, failedReason, returnvalue, stacktrace, repeatJobKey,
      state: await job.getState(),
    });
  }
  told.pages[state] = [];
  for (let start = 0; start < jobs.length; start += PAGE) {
    told.pages[state].push((await queue.getJobs([state], start, start + PAGE - 1)).map((job) => job.id));
  }
}
told.schedulers = await queue.getJobSchedulers(0, -1, true);
told.oneScheduler = told.schedulers.length ? await queue.getJobScheduler(told.schedulers[0].key) : null;

for (const status of states.filter((state) => state !== "paused")) {
  const pages = [];
  for (let page = 1, last = 1; page <= last; page++) {
    const query = { activeQueue: name, status, page: String(page), jobsPerPage: String(PAGE) };
    const [shown] = (await ask("/api/queues", {}, query)).queues;
    pages.push(shown);
    last = shown.pagination.pageCount;
  }
  told.board[status] = pages;
}
told.boardSchedulers = (await ask("/api/job-schedulers", {}, {})).schedulers;
const someone = states.flatMap((state) => told.jobs[state])[0];
told.boardJob = someone ? await ask("/api/queues/:queueName/:jobId", { queueName: name, jobId: someone.id }, {}) : null;

// A worker that is pointed here by mistake.
const worker = new Worker(name, null, { connection: connection.duplicate(), prefix, skipStalledCheck: true });
told.taken = (await worker.getNextJob("token", { block: false }))?.id ?? null;
await worker.close();

process.stdout.write(JSON.stringify(told), () => process.exit(0));
