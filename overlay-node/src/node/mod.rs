//! The node: owns every part, starts and stops them in order.

use crate::{
    api::ApiStartError,
    config::{FabricConfig, RunConfig},
    state::{State, StateError},
};
use overlay_types::{PeerId, api::Status};

/// Why a node cannot start, or had to stop. Each is one line that says what to do next.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// The state directory.
    #[error(transparent)]
    State(#[from] StateError),
    /// The local API.
    #[error(transparent)]
    Api(#[from] ApiStartError),
}

/// Runs a member until `config.stop`. `ready` is called once.
///
/// # Errors
/// [`NodeError`] when it cannot start.
pub async fn run(
    config: RunConfig,
    _ready: impl FnOnce(&Status) + Send + 'static,
) -> Result<(), NodeError> {
    let _state = State::open(&config.state_dir)?;
    config.stop.cancelled().await;
    Ok(())
}

/// Runs an infrastructure node until `config.stop`. `ready` is called once with the addresses to use as bootstraps.
///
/// # Errors
/// [`NodeError`] when it cannot start.
pub async fn run_fabric(
    config: FabricConfig,
    _ready: impl FnOnce(PeerId, &[String]) + Send,
) -> Result<(), NodeError> {
    let _state = State::open(&config.state_dir)?;
    config.stop.cancelled().await;
    Ok(())
}
