//! Fills a collection with users to synchronise: `seed [COUNT [REJECTED]]`, into `MONGODB_URI`/`MONGODB_DATABASE`.
//!
//! Each call writes the same bytes. A validator refuses to update REJECTED of them, as happens to documents that are
//! older than the rules of their collection.

use std::{env, error::Error, time::Instant};

use bson::{DateTime, Document, doc, oid::ObjectId};
use mongodb::{Client, Database};

const CHUNK: u64 = 5000;
/// 2024-01-01, when the first user was created. One more came each second.
const EPOCH: u64 = 1_704_067_200;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut numbers = env::args().skip(1).map(|text| text.parse::<u64>());
    let count = numbers.next().transpose()?.unwrap_or(10_000);
    let rejected = numbers.next().transpose()?.unwrap_or(3);
    let uri = env::var("MONGODB_URI").map_err(|_| "MONGODB_URI is not set")?;
    let name = env::var("MONGODB_DATABASE").unwrap_or_else(|_| "codex".to_owned());
    let database = Client::with_uri_str(uri).await?.database(&name);
    let started = Instant::now();
    seed(&database, count, rejected).await?;
    println!("seeded {count} users into {name}.users in {:.1} s", started.elapsed().as_secs_f64());
    Ok(())
}

async fn seed(database: &Database, count: u64, rejected: u64) -> Result<(), Box<dyn Error>> {
    let users = database.collection::<Document>("users");
    users.drop().await?;
    for from in (0..count).step_by(CHUNK as usize) {
        let chunk =
            (from..count.min(from + CHUNK)).map(|i| user(i, i * rejected / count != (i + 1) * rejected / count));
        users.insert_many(chunk).ordered(false).await?;
    }
    if rejected == 0 {
        return Ok(());
    }
    let rule = doc! {"$jsonSchema": {"properties": {"email": {"bsonType": "string", "pattern": "@"}}}};
    database.run_command(doc! {"collMod": "users", "validator": rule, "validationLevel": "strict"}).await?;
    Ok(())
}

/// A user of about 1 KB. A broken one has an email without @.
fn user(i: u64, broken: bool) -> Document {
    let mut noise = Noise(i + 0x2545_f491_4f6c_dd1d);
    let mut id = [0; 12];
    id[..4].copy_from_slice(&((EPOCH + i) as u32).to_be_bytes());
    id[4..].copy_from_slice(&i.to_be_bytes());
    let username = format!("user-{i:08}");
    let created = (EPOCH + i) as i64 * 1000;
    let groups: Vec<String> =
        (0..14).map(|_| format!("org-{:05}:team-{}:member", noise.next() % 5000, noise.hex(24))).collect();
    let state = ["active", "active", "active", "invited", "suspended"][(noise.next() % 5) as usize];
    doc! {
        "_id": ObjectId::from_bytes(id),
        "email": if broken { format!("{username} at example.org") } else { format!("{username}@example.org") },
        "username": username,
        "name": format!("Given {} Family {}", noise.hex(8), noise.hex(10)),
        "avatarUrl": format!("https://avatars.example.org/u/{}?size=256", noise.hex(32)),
        "state": state,
        "groups": groups,
        "createdAt": DateTime::from_millis(created),
        "updatedAt": DateTime::from_millis(created + (noise.next() % 86_400_000) as i64),
    }
}

/// Marsaglia's xorshift64 (<https://doi.org/10.18637/jss.v008.i14>).
struct Noise(u64);

impl Noise {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn hex(&mut self, length: usize) -> String {
        (0..length).map(|_| char::from_digit((self.next() >> 20) as u32 & 15, 16).unwrap_or('0')).collect()
    }
}
