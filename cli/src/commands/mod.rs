//! One function per command, grouped by what they are about.

mod detach;
mod guests;
pub(crate) mod networks;
mod nodes;
mod run;

use crate::{
    args::{Args, Command, Deploy},
    client::Client,
    demo, deploy,
};
use anyhow::Context;
use std::io::Read;

/// Longer than any invite.
const TOKEN_BYTES_MAX: u64 = 64 << 10;

/// Does what was typed.
pub(crate) async fn run(typed: Args) -> anyhow::Result<()> {
    let global = &typed.global;
    match typed.command {
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
        Command::Deploy(Deploy::Apply(flags)) => deploy::apply(global, flags).await,
    }
}

/// The invite that was typed, or standard input's where `-` was: so that it need not show in the process list.
pub(crate) fn read_token(typed: &str) -> anyhow::Result<String> {
    let mut text = typed.to_owned();
    if typed == "-" {
        text.clear();
        let mut stdin = std::io::stdin().take(TOKEN_BYTES_MAX);
        stdin
            .read_to_string(&mut text)
            .context("cannot read the invite from standard input")?;
    }
    let token: String = text.split_whitespace().collect();
    anyhow::ensure!(
        !token.is_empty(),
        "the invite is empty; paste the whole line that `farlan invite` printed"
    );
    Ok(token)
}
