//! Statuses of SyncAlerts in Redis: which sink was notified of which alert.

use std::time::Duration;

use redis::AsyncCommands;

use super::{Error, Queue, scripts, unavailable};

/// Time for which an unchanged status is kept. A problem that lasts is reported again sooner than that.
const ALERT_RETENTION: Duration = Duration::from_hours(30 * 24);

impl Queue {
    /// Stores the status of an alert, unless a newer status is stored. False when there is.
    ///
    /// # Errors
    /// When Redis does not answer; the status may or may not be stored.
    pub async fn store_alert_status(&self, uid: &str, revision: i64, value: &str) -> Result<bool, Error> {
        let mut call = self.script(&scripts::STORE_ALERT);
        call.key(self.keys.alert(uid)).arg(revision).arg(value).arg(ALERT_RETENTION.as_millis() as u64);
        self.call(&call, "store the status of an alert").await
    }

    /// Loads the status of a SyncAlert.
    ///
    /// # Errors
    /// When Redis does not answer.
    pub async fn load_alert_status(&self, uid: &str) -> Result<Option<String>, Error> {
        let mut connection = self.connection.clone();
        connection.hget(self.keys.alert(uid), "value").await.map_err(unavailable("read the status of an alert"))
    }

    /// Forgets an alert.
    ///
    /// # Errors
    /// When Redis does not answer.
    pub async fn forget_alert(&self, uid: &str) -> Result<(), Error> {
        let mut connection = self.connection.clone();
        connection.del(self.keys.alert(uid)).await.map_err(unavailable("remove the status of an alert"))
    }
}
