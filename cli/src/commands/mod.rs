//! One function per command, grouped by what they are about.

mod detach;
mod doctor;
mod guests;
mod networks;
mod nodes;
mod run;
mod why;

use crate::{
    args::{Args, Command, Deploy},
    client::Client,
    demo, deploy,
};
use std::process::ExitCode;

/// Does what was typed, and says with what status it ends.
pub(crate) async fn run(typed: Args) -> anyhow::Result<ExitCode> {
    let global = &typed.global;
    let done = match typed.command {
        Command::Doctor(read) => return doctor::doctor(global, read.json).await,
        Command::Demo { keep, json } => demo::run(keep, json),
        Command::Fabric(flags) => run::fabric(global, flags).await,
        Command::Up(flags) => run::up(global, flags).await,
        Command::Down => run::down(&Client::new(global)?).await,
        Command::Network(command) => networks::run(global, command).await,
        Command::Invite {
            role,
            expires,
            uses,
            json,
        } => networks::invite(&Client::new(global)?, role, expires, uses, json).await,
        Command::Port(command) => guests::port(&Client::new(global)?, command).await,
        Command::Lan(command) => guests::lan(&Client::new(global)?, command).await,
        Command::Status(read) => nodes::status(&Client::new(global)?, read).await,
        Command::Peers(read) => nodes::peers(&Client::new(global)?, read).await,
        Command::Leases(read) => nodes::leases(&Client::new(global)?, read).await,
        Command::Ping {
            target,
            count,
            interval,
            timeout,
            json,
        } => {
            nodes::ping(
                &Client::new(global)?,
                &nodes::PingPlan {
                    target,
                    count,
                    interval,
                    timeout,
                    json,
                },
            )
            .await
        }
        Command::Why { targets, json } => why::why(&Client::new(global)?, &targets, json).await,
        Command::Deploy(Deploy::Apply(flags)) => deploy::apply(global, flags).await,
    };
    done.map(|()| ExitCode::SUCCESS)
}
