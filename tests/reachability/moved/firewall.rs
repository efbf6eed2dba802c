//! Firewalls that come and go at a site's router.

use anyhow::Result;
use cli::lab::Site;

/// Nothing but what was let out before these lines.
const NOTHING: &str = "iifname \"lan\" drop
    iifname \"wan\" meta l4proto udp drop";

/// Lets nothing out of a site but what `allowed` says, in nft's words.
pub(crate) fn let_out_only(site: &Site<'_>, allowed: &str) -> Result<()> {
    firewall(
        site,
        &format!("iifname \"lan\" {allowed} accept\n    {NOTHING}"),
    )
}

/// Lets nothing out of a site; its router may.
pub(super) fn let_out_nothing(site: &Site<'_>) -> Result<()> {
    firewall(site, NOTHING)
}

/// Drops what each of these says, either way.
pub(super) fn drop_all(site: &Site<'_>, what: &[String]) -> Result<()> {
    let lines: Vec<String> = what.iter().map(|what| format!("{what} drop")).collect();
    firewall(site, &lines.join("\n    "))
}

/// Opens it again.
pub(crate) fn let_out_all(site: &Site<'_>) -> Result<()> {
    firewall(site, "")
}

/// Puts rules in the place of those before.
fn firewall(site: &Site<'_>, rules: &str) -> Result<()> {
    site.router().nft(&format!(
        "table inet firewall
delete table inet firewall
table inet firewall {{
  chain out {{
    type filter hook forward priority filter - 10; policy accept;
    {rules}
  }}
}}
"
    ))
}
