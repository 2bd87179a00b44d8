//! What is noted about a request besides its answer.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

tokio::task_local! {
    static NOTES: Arc<Notes>;
}

/// What handlers note about their request.
#[derive(Debug, Default)]
pub(crate) struct Notes {
    annotations: Mutex<BTreeMap<String, String>>,
}

/// Notes something about the request that this task answers; outside of a request nothing happens.
/// Of several notes under one key the first counts.
pub(crate) fn annotate(key: &str, value: impl Into<String>) {
    // Outside of a request there is nobody to tell.
    let _ = NOTES.try_with(|notes| {
        let mut annotations = notes.annotations.lock().unwrap_or_else(|e| e.into_inner());
        annotations.entry(key.to_owned()).or_insert_with(|| value.into());
    });
}
