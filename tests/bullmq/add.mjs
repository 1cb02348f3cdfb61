// Adds a job to a queue of BullMQ, as its owner does: node add.mjs REDIS_URL PREFIX QUEUE
import { Queue } from "bullmq";
import Redis from "ioredis";

const [url, prefix, name] = process.argv.slice(2);
setTimeout(() => process.exit(1), 60_000).unref();
const connection = new Redis(url, { maxRetriesPerRequest: null });
const queue = new Queue(name, { connection, prefix });
await queue.add("theirs", { precious: true });
process.exit(0);
