// Addresses, and what every case prints: the same figures as the Rust ones.
import { MongoClient } from 'mongodb';

const address = new URL(process.env.REDIS_URL);
export const redis = { host: address.hostname, port: Number(address.port) };
export const args = process.argv.slice(2).map(Number);

// The driver's defaults: retryable writes, w: majority, up to 100 connections.
export async function connectUsers() {
  const client = await new MongoClient(process.env.MONGODB_URI).connect();
  return { client, users: client.db(process.env.MONGODB_DATABASE).collection('users') };
}

// Times `work`, which returns how many units it did, and ends the process.
export async function report(work) {
  const cpu = process.cpuUsage();
  const began = performance.now();
  const { count, ...figures } = await work();
  const seconds = (performance.now() - began) / 1000;
  const { user, system } = process.cpuUsage(cpu);
  console.log(JSON.stringify({
    ...(count && { per_s: count / seconds }),
    ...figures,
    cpu_s: (user + system) / 1e6,
    rss_mib: process.resourceUsage().maxRSS / 1024,
  }));
  process.exit(0);
}
