//! Rate limits that all processes share.

use std::time::Duration;

use futures::future::join_all;
use sync_operator::domain::rate_limit::Reservation;
use tokio::time::Instant;

use super::support::{named_queue, queue};
use crate::support::{eventually, unique};

fn reserved(reservation: Reservation) -> Duration {
    match reservation {
        Reservation::After(wait) => wait,
        Reservation::RetryAfter(wait) => panic!("rejected for {wait:?}"),
    }
}

#[tokio::test]
async fn all_processes_share_a_rate_limit() {
    let (name, every) = (unique("rate"), Duration::from_millis(10));
    let queues = [(); 3].map(|()| named_queue(&name, Duration::from_secs(30)));
    let began = Instant::now();
    let requests = (0..60).map(|number| {
        let queue = &queues[number % 3];
        async move {
            let wait = reserved(queue.reserve_request("a", every).await.unwrap());
            began.elapsed() + wait
        }
    });
    let last = join_all(requests).await.into_iter().max().unwrap();
    assert!(last >= every * 59, "the last request is sent after {last:?}");
    let other = queues[0].reserve_request("b", every).await.unwrap();
    assert_eq!(other, Reservation::After(Duration::ZERO), "another rate limit");
}

#[tokio::test]
async fn a_request_is_reserved_at_most_a_second_ahead() {
    let (queue, every) = (queue(Duration::from_secs(30)), Duration::from_millis(600));
    let reserve = async || queue.reserve_request("a", every).await.unwrap();
    assert_eq!(reserve().await, Reservation::After(Duration::ZERO));
    reserved(reserve().await);
    // This request is reserved or not, by the duration of the calls. Later requests are not reserved.
    let _ = reserve().await;
    let waits = [reserve().await, reserve().await];
    let Reservation::RetryAfter(wait) = waits[1] else { panic!("{waits:?}") };
    assert!(wait <= Duration::from_millis(2400), "a rejected reservation takes no time from others: {wait:?}");
}

#[tokio::test]
async fn a_pause_rejects_requests_until_it_is_over() {
    let queue = queue(Duration::from_secs(30));
    queue.pause_requests("a", Duration::from_secs(60)).await.unwrap();
    queue.pause_requests("a", Duration::from_secs(5)).await.unwrap();
    let reservation = queue.reserve_request("a", Duration::ZERO).await.unwrap();
    let Reservation::RetryAfter(wait) = reservation else { panic!("{reservation:?}") };
    assert!(wait > Duration::from_secs(50), "a shorter pause does not end a longer one: {wait:?}");
    queue.pause_requests("b", Duration::from_millis(300)).await.unwrap();
    eventually("the pause is over", async || {
        let reservation = queue.reserve_request("b", Duration::ZERO).await.unwrap();
        (reservation == Reservation::After(Duration::ZERO)).then_some(())
    })
    .await;
}
