//! Lower bound of the time of a run: the writes in MongoDB alone, with keys and commands that are prepared in advance,
//! and without progress, failures and other writers.

use std::sync::{
    Arc,
    atomic::{AtomicI64, AtomicUsize, Ordering},
};

use bson::{Bson, DateTime, RawDocumentBuf, doc, rawdoc};
use futures::{TryStreamExt, future::try_join_all};
use mongodb::{Client, options::ClientOptions};
use tokio::time::Instant;

use test_support::process;

use crate::{Figures, Result, variable};

/// The database of all benchmarks.
pub const DATABASE: &str = "bench";

/// Returns a client with at most `connections` connections.
pub async fn client(connections: u32) -> Result<Client> {
    let mut options = ClientOptions::parse(variable("MONGODB_URI")?).await?;
    options.max_pool_size = Some(connections);
    Ok(Client::with_options(options)?)
}

/// Stamps every user with `range`: one `updateMany` over each batch's range of keys, or `bulk`: one command with a
/// statement for each user of a batch.
pub async fn run(mode: &str, batch: usize, connections: u32) -> Result<Figures> {
    let client = client(connections).await?;
    let database = client.database(DATABASE);
    let users = database.collection::<RawDocumentBuf>("users");
    let found = users.find(doc! {}).sort(doc! {"_id": 1}).projection(doc! {"_id": 1}).await?;
    let found: Vec<RawDocumentBuf> = found.try_collect().await?;
    let ids = found.iter().map(|user| Ok(user.get_object_id("_id")?.into())).collect::<Result<Vec<Bson>>>()?;
    let stamp = DateTime::now();
    let commands = ids.chunks(batch).map(|ids| command(mode, ids, stamp)).collect::<Result<Vec<_>>>()?;
    // The connections are open before the clock starts.
    try_join_all((0..connections).map(|_| async { database.run_command(doc! {"ping": 1}).await })).await?;

    let cpu = process::cpu_s(std::process::id());
    let (commands, next, modified) = (Arc::new(commands), Arc::<AtomicUsize>::default(), Arc::<AtomicI64>::default());
    let began = Instant::now();
    let tasks = (0..connections).map(|_| {
        let (commands, next, modified) = (Arc::clone(&commands), Arc::clone(&next), Arc::clone(&modified));
        let database = database.clone();
        tokio::spawn(async move {
            while let Some(command) = commands.get(next.fetch_add(1, Ordering::Relaxed)) {
                let reply = database.run_raw_command(command.clone()).await?;
                modified.fetch_add(i64::from(reply.get_i32("nModified").unwrap_or(0)), Ordering::Relaxed);
            }
            Ok::<_, mongodb::error::Error>(())
        })
    });
    for task in tasks.collect::<Vec<_>>() {
        task.await??;
    }
    let elapsed = began.elapsed();
    let modified = modified.load(Ordering::Relaxed);
    if modified != ids.len() as i64 {
        return Err(format!("{modified} of {} users are stamped", ids.len()).into());
    }
    Ok(Figures {
        per_s: ids.len() as f64 / elapsed.as_secs_f64(),
        cpu_s: process::cpu_s(std::process::id()) - cpu,
        rss_mib: process::memory_mib(std::process::id(), process::PEAK),
        ..Figures::default()
    })
}

fn command(mode: &str, ids: &[Bson], stamp: DateTime) -> Result<RawDocumentBuf> {
    let set = || doc! {"$set": {"lastSynced": stamp}};
    let statements: Vec<Bson> = match (mode, ids.first(), ids.last()) {
        ("range", Some(first), Some(last)) => {
            vec![doc! {"q": {"_id": {"$gte": first, "$lte": last}}, "u": set(), "multi": true}.into()]
        }
        ("bulk", ..) => ids.iter().map(|id| doc! {"q": {"_id": id}, "u": set()}.into()).collect(),
        _ => return Err(format!("no floor {mode}").into()),
    };
    let mut command = rawdoc! {"update": "users", "ordered": false, "writeConcern": {"w": "majority"}};
    command.append(bson::raw::cstr!("updates"), bson::RawArrayBuf::try_from(statements)?);
    Ok(command)
}
