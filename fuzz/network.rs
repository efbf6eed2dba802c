//! A small network with one registrar whose disk is instant, so that targets have true certificates to break.

use dht::identity::Identity;
use dht::lease::{LeaseCert, Registrar, RegistrarEvent, Reply, Transaction};
use dht::membership::{MembershipCert, Roles};
use dht::network::{Genesis, Network, NetworkSecret};
use dht::record::{Guest, NodeRecord};
use overlay_types::{Candidate, DataKeys, DhcpMode, KEM_KEY_BYTES, MacAddr};
use rand::SeedableRng;
use rand_chacha::ChaCha20Rng;
use std::sync::LazyLock;
use std::time::Instant;

/// When everything here happens, in unix seconds.
pub(crate) const NOW: u64 = 1_800_000_000;

/// What exists once for all targets.
pub(crate) struct World {
    pub(crate) owner: Identity,
    pub(crate) member: Identity,
    pub(crate) network: Network,
    pub(crate) secret: NetworkSecret,
    pub(crate) token: Vec<u8>,
    pub(crate) membership: MembershipCert,
    pub(crate) lease: LeaseCert,
    pub(crate) block: LeaseCert,
}

pub(crate) static WORLD: LazyLock<World> = LazyLock::new(World::new);

impl World {
    fn new() -> Self {
        let mut rng = ChaCha20Rng::seed_from_u64(77);
        let owner = Identity::generate(&mut rng);
        let member = Identity::generate(&mut rng);
        let (name, subnet) = ("lab".parse().unwrap(), "10.77.0.0/16".parse().unwrap());
        let genesis = Genesis::new(&mut rng, name, subnet, DhcpMode::Overlay, owner.peer_id());
        let network = Network::new(genesis).unwrap();
        let expires = NOW + 3600;
        let (_, token) =
            dht::invite::issue(&owner, &network, Roles::DEFAULT, 9, expires, NOW, &mut rng)
                .unwrap();
        let secret = NetworkSecret::generate(&mut rng);
        let mut registrar = registrar(&owner, &network);
        let name: overlay_types::Name = "alice".parse().unwrap();
        let admit = Transaction::Admit {
            token: token.clone(),
            name: name.clone(),
            unix: NOW,
        };
        let Some(Reply::Member(membership)) = ask(&mut registrar, &member, admit, NOW) else {
            panic!("a good invite admits");
        };
        let claim = Transaction::ClaimAddress {
            wanted: None,
            mac: member.peer_id().host_mac(),
            name: Some(name),
            unix: NOW,
        };
        let Some(Reply::Lease(lease)) = ask(&mut registrar, &member, claim, NOW) else {
            panic!("a member gets an address");
        };
        let claim = Transaction::ClaimBlock {
            wanted: None,
            have: Vec::new(),
            unix: NOW,
        };
        let Some(Reply::Lease(block)) = ask(&mut registrar, &member, claim, NOW) else {
            panic!("a member gets a block");
        };
        Self {
            owner,
            member,
            network,
            secret,
            token,
            membership,
            lease,
            block,
        }
    }

    /// The member's record.
    pub(crate) fn record(&self) -> NodeRecord {
        let dht::lease::Subject::Block(block) = self.block.subject else {
            panic!("a block was claimed");
        };
        NodeRecord {
            peer: self.member.peer_id(),
            network: self.network.id(),
            seq: NOW * 1000,
            expires: NOW + 7200,
            keys: DataKeys {
                x25519: [4; 32],
                kem: vec![0; KEM_KEY_BYTES],
            },
            candidates: vec![Candidate::Host(([192, 0, 2, 1], 4000).into())],
            control: vec!["/ip4/192.0.2.1/udp/4001/quic-v1".into()],
            membership: self.membership.clone(),
            leases: vec![self.lease.clone(), self.block.clone()],
            guests: vec![Guest {
                mac: MacAddr([2, 0, 0, 0, 0, 0xa]),
                ip: block.base().into(),
                name: Some("vm-8-1".parse().unwrap()),
            }],
            nat: ("unknown".into(), "unknown".into()),
            lan: None,
        }
    }
}

/// A registrar that has voted on nothing yet.
pub(crate) fn registrar(owner: &Identity, network: &Network) -> Registrar {
    let rng = ChaCha20Rng::seed_from_u64(78);
    Registrar::new(
        owner.clone(),
        network.clone(),
        [],
        true,
        rng,
        Instant::now(),
    )
    .unwrap()
}

/// Asks, and writes to the instant disk until there is an answer.
pub(crate) fn ask(
    registrar: &mut Registrar,
    who: &Identity,
    transaction: Transaction,
    unix: u64,
) -> Option<Reply> {
    let now = Instant::now();
    registrar.handle_transaction(1, who.peer_id(), transaction, now, unix);
    while let Some(event) = registrar.poll_event() {
        match event {
            RegistrarEvent::Persist { id, .. } => registrar.handle_persisted(id, now, unix),
            RegistrarEvent::Reply { reply, .. } => return Some(*reply),
            RegistrarEvent::AskMembers | RegistrarEvent::RolledBack => {}
        }
    }
    None
}
