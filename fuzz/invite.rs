//! Invite strings, and the rights inside them.

use crate::input::{Edits, broken};
use crate::network::{NOW, WORLD};
use bolero::check;
use data_encoding::BASE64URL_NOPAD;
use dht::invite::{self, Invite};
use sha2::{Digest, Sha256};
use std::sync::LazyLock;

static INVITE: LazyLock<String> = LazyLock::new(|| {
    let invite = Invite {
        network: WORLD.network.id(),
        name: "lab".parse().unwrap(),
        bootstrap: vec!["/ip4/192.0.2.1/udp/4001/quic-v1".into()],
        rendezvous: [5; 32],
        expires: NOW + 3600,
        token: WORLD.token.clone(),
    };
    invite.to_string()
});

#[test]
fn invite_strings_are_read() {
    check!()
        .with_type()
        .for_each(|(edits, bytes): &(Edits, Vec<u8>)| {
            for bytes in [broken(INVITE.as_bytes(), edits), bytes.clone()] {
                let text = String::from_utf8_lossy(&bytes);
                match text.parse::<Invite>() {
                    Ok(invite) => assert_eq!(invite.to_string().parse(), Ok(invite)),
                    Err(error) => assert!(error.to_string().len() < 300),
                }
            }
        });
}

#[test]
fn invites_with_a_right_checksum_are_read() {
    let bytes = BASE64URL_NOPAD
        .decode(INVITE.strip_prefix("farlan1_").unwrap().as_bytes())
        .unwrap();
    let body = bytes[2..bytes.len() - 4].to_vec();
    check!().with_type().for_each(|edits: &Edits| {
        let body = broken(&body, edits);
        let sum = Sha256::new()
            .chain_update("farlan-1 invite\0")
            .chain_update(&body)
            .finalize();
        let bytes = [&(body.len() as u16).to_be_bytes()[..], &body, &sum[..4]].concat();
        let text = format!("farlan1_{}", BASE64URL_NOPAD.encode(&bytes));
        if let Ok(invite) = text.parse::<Invite>() {
            assert_eq!(invite.to_string().parse(), Ok(invite.clone()));
            let _ = invite.check_expiry(NOW);
            let _ = invite::verify(&invite.token, &WORLD.network, WORLD.member.peer_id(), NOW);
        }
    });
}

#[test]
fn rights_are_verified() {
    check!()
        .with_type()
        .for_each(|(edits, unix): &(Edits, u64)| {
            let token = broken(&WORLD.token, edits);
            let holder = WORLD.member.peer_id();
            for unix in [NOW, *unix] {
                if let Ok(grant) = invite::verify(&token, &WORLD.network, holder, unix) {
                    assert!(grant.uses <= invite::INVITE_USES_MAX && unix < grant.expires);
                }
            }
            if let Ok(narrowed) = invite::attenuate(&token, Some(*unix), Some(holder)) {
                let _ = invite::verify(&narrowed, &WORLD.network, holder, NOW);
            }
        });
}
