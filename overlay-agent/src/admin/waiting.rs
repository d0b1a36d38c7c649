//! An agent that cannot run yet answers all the same.

use std::{
    convert::Infallible,
    sync::{Mutex, PoisonError},
};

use overlay_lease::trouble::Troubles;

use super::{Requests, Status};

/// What an agent on its way waits for.
#[derive(Debug)]
pub struct Waiting {
    step: Mutex<&'static str>,
    troubles: Troubles,
}

impl Waiting {
    /// On its way to `step`; what fails meanwhile is among `troubles`.
    pub const fn new(step: &'static str, troubles: Troubles) -> Self {
        Self { step: Mutex::new(step), troubles }
    }

    /// Now it waits for this.
    pub fn step(&self, step: &'static str) {
        *self.step.lock().unwrap_or_else(PoisonError::into_inner) = step;
    }

    /// What to answer now.
    pub fn status(&self) -> Status {
        let step = *self.step.lock().unwrap_or_else(PoisonError::into_inner);
        Status::waiting(step, self.troubles.sentences())
    }

    /// Answers until somebody else takes over.
    pub async fn answer(&self, requests: &mut Requests) -> Infallible {
        while let Some(answer) = requests.recv().await {
            // Whoever asked may have gone.
            answer.send(self.status()).ok();
        }
        std::future::pending().await
    }
}
