//! Rate limits that all processes share.

use std::time::Duration;

use futures::future::join_all;
use sync_operator::domain::rate_limit::{Reservation, SharedRateLimit};
use tokio::time::Instant;

use super::support::{named_queue, queue};
use crate::support::{eventually, unique};

fn limit(name: &str, every: Duration) -> SharedRateLimit {
    SharedRateLimit { name: name.to_owned(), every }
}

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
            let wait = reserved(queue.reserve_request(&[limit("a", every)]).await.unwrap());
            began.elapsed() + wait
        }
    });
    let last = join_all(requests).await.into_iter().max().unwrap();
    assert!(last >= every * 59, "the last request is sent after {last:?}");
    let other = queues[0].reserve_request(&[limit("b", every)]).await.unwrap();
    assert_eq!(other, Reservation::After(Duration::ZERO), "another rate limit");
}

#[tokio::test]
async fn a_request_is_reserved_at_most_a_second_ahead() {
    let (queue, every) = (queue(Duration::from_secs(30)), Duration::from_millis(600));
    let reserve = async || queue.reserve_request(&[limit("a", every)]).await.unwrap();
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
    let reservation = queue.reserve_request(&[limit("a", Duration::ZERO)]).await.unwrap();
    let Reservation::RetryAfter(wait) = reservation else { panic!("{reservation:?}") };
    assert!(wait > Duration::from_secs(50), "a shorter pause does not end a longer one: {wait:?}");
    queue.pause_requests("b", Duration::from_millis(300)).await.unwrap();
    eventually("the pause is over", async || {
        let reservation = queue.reserve_request(&[limit("b", Duration::ZERO)]).await.unwrap();
        (reservation == Reservation::After(Duration::ZERO)).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_request_is_reserved_under_all_limits_or_none() {
    let (queue, every) = (queue(Duration::from_secs(30)), Duration::from_millis(600));
    queue.pause_requests("host", Duration::from_secs(60)).await.unwrap();
    let both = [limit("own", every), limit("host", every)];
    for _ in 0..9 {
        let reservation = queue.reserve_request(&both).await.unwrap();
        assert!(matches!(reservation, Reservation::RetryAfter(_)), "{reservation:?}");
    }
    let own = queue.reserve_request(&both[..1]).await.unwrap();
    assert_eq!(own, Reservation::After(Duration::ZERO), "the rejected requests took no time of the other limit");
    let both = [limit("own", every), limit("free", Duration::from_millis(1))];
    let wait = reserved(queue.reserve_request(&both).await.unwrap());
    assert!(wait > Duration::ZERO, "the later of the two times counts: {wait:?}");
}
