//! A GraphQL server with a part of GitLab's schema: `gitlab PORT [COUNT]`. Before it serves, it makes COUNT documents
//! that know only their `gitlabId`, in each of the collections `gitlab_users`, `gitlab_projects`, `gitlab_issues` and
//! `gitlab_pipelines` of `MONGODB_URI`/`MONGODB_DATABASE`.

use std::{env, error::Error, future::pending, time::Duration};

use bson::{Document, doc};
use mongodb::{Client, Database, IndexModel, options::IndexOptions};
use test_support::upstream::Upstream;

/// Collections, and the type in their ids.
const KINDS: [(&str, &str); 4] = [
    ("gitlab_users", "User"),
    ("gitlab_projects", "Project"),
    ("gitlab_issues", "Issue"),
    ("gitlab_pipelines", "Ci::Pipeline"),
];
/// Delay of each answer, as over the internet.
const LATENCY: Duration = Duration::from_millis(30);

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = env::args().skip(1);
    let port: u16 = arguments.next().ok_or("the port is missing")?.parse()?;
    let count: u32 = arguments.next().map_or(Ok(500), |count| count.parse())?;
    let uri = env::var("MONGODB_URI").map_err(|_| "MONGODB_URI is not set")?;
    let name = env::var("MONGODB_DATABASE").unwrap_or_else(|_| "codex".to_owned());
    seed(&Client::with_uri_str(uri).await?.database(&name), count).await?;
    let upstream = Upstream::start_on(port).await;
    upstream.state().delay = LATENCY;
    println!("{}", upstream.url);
    pending().await
}

async fn seed(database: &Database, count: u32) -> Result<(), Box<dyn Error>> {
    for (name, kind) in KINDS {
        let collection = database.collection::<Document>(name);
        collection.drop().await?;
        let unique = IndexOptions::builder().unique(true).build();
        collection.create_index(IndexModel::builder().keys(doc! {"gitlabId": 1}).options(unique).build()).await?;
        let ids = (1..=count).map(|id| doc! {"gitlabId": format!("gid://gitlab/{kind}/{id}")});
        collection.insert_many(ids).await?;
    }
    Ok(())
}
