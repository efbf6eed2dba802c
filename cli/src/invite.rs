//! Invites as commands handle them: read from the command line or standard input, asked of a node.

use crate::{args::Role, client::Client};
use anyhow::Context;
use overlay_types::api::{CreateInvite, Invite};
use std::{io::Read, time::Duration};

/// Longer than any invite.
const TOKEN_BYTES_MAX: u64 = 64 << 10;

/// Asks the node for an invite.
pub(crate) async fn make_invite(
    client: &Client,
    role: Role,
    expires: Duration,
    uses: u32,
) -> anyhow::Result<Invite> {
    let role = match role {
        Role::Member => "member",
        Role::Leaf => "leaf",
    };
    let request = CreateInvite {
        role: role.into(),
        expires_s: expires.as_secs().max(1),
        uses,
    };
    Ok(client.post("/v1/invites", &request).await?)
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
