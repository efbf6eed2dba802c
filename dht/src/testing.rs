//! A network with a sole registrar whose disk is instant, for the tests of everything that needs certificates.

use crate::identity::Identity;
use crate::lease::{LeaseCert, Registrar, RegistrarEvent, Reply, Transaction};
use crate::membership::{MembershipCert, Roles};
use crate::network::{Genesis, Network};
use crate::record::{Guest, NodeRecord};
use crate::signed::Verified;
use crate::{invite, lease::Refusal};
use overlay_types::{DataKeys, DhcpMode, KEM_KEY_BYTES, Name};
use rand_chacha::ChaCha20Rng;
use rand_chacha::rand_core::SeedableRng;
use std::time::Instant;

pub(crate) const NOW: u64 = 1_800_000_000;

pub(crate) struct Lab {
    pub(crate) owner: Identity,
    pub(crate) network: Network,
    pub(crate) registrar: Registrar,
    pub(crate) rng: ChaCha20Rng,
    pub(crate) now: Instant,
    pub(crate) unix: u64,
}

#[expect(
    clippy::disallowed_methods,
    reason = "one reading of the clock as the origin of virtual time"
)]
pub(crate) fn origin() -> Instant {
    Instant::now()
}

impl Lab {
    pub(crate) fn new(subnet: &str, dhcp: DhcpMode) -> Self {
        let mut rng = ChaCha20Rng::seed_from_u64(77);
        let owner = Identity::generate(&mut rng);
        let genesis = Genesis::new(
            &mut rng,
            "lab".parse().unwrap(),
            subnet.parse().unwrap(),
            dhcp,
            owner.peer_id(),
        );
        let network = Network::new(genesis).unwrap();
        let now = origin();
        let registrar =
            Registrar::new(owner.clone(), network.clone(), [], true, rng.clone(), now).unwrap();
        Self {
            owner,
            network,
            registrar,
            rng,
            now,
            unix: NOW,
        }
    }

    pub(crate) fn ask(&mut self, from: &Identity, transaction: Transaction) -> Reply {
        self.registrar
            .handle_transaction(1, from.peer_id(), transaction, self.now, self.unix);
        loop {
            match self
                .registrar
                .poll_event()
                .expect("a sole registrar answers by itself")
            {
                RegistrarEvent::Persist { id, .. } => {
                    self.registrar.handle_persisted(id, self.now, self.unix)
                }
                RegistrarEvent::Reply { reply, .. } => return *reply,
                other => panic!("{other:?}"),
            }
        }
    }

    pub(crate) fn token(&mut self, roles: Roles, uses: u32) -> Vec<u8> {
        invite::issue(
            &self.owner,
            &self.network,
            roles,
            uses,
            self.unix + 3600,
            self.unix,
            &mut self.rng,
        )
        .unwrap()
        .1
    }

    pub(crate) fn admit(
        &mut self,
        who: &Identity,
        token: Vec<u8>,
        name: &str,
    ) -> Result<MembershipCert, Refusal> {
        match self.ask(
            who,
            Transaction::Admit {
                token,
                name: name.parse().unwrap(),
                unix: self.unix,
            },
        ) {
            Reply::Member(cert) => Ok(cert),
            Reply::Refused(refusal) => Err(refusal),
            other => panic!("{other:?}"),
        }
    }

    pub(crate) fn claim(
        &mut self,
        who: &Identity,
        name: Option<&str>,
    ) -> Result<LeaseCert, Refusal> {
        let name = name.map(|name| name.parse().unwrap());
        let mac = who.peer_id().host_mac();
        self.lease(
            who,
            Transaction::ClaimAddress {
                wanted: None,
                mac,
                name,
                unix: self.unix,
            },
        )
    }

    pub(crate) fn claim_block(&mut self, who: &Identity) -> Result<LeaseCert, Refusal> {
        self.lease(
            who,
            Transaction::ClaimBlock {
                wanted: None,
                have: Vec::new(),
                unix: self.unix,
            },
        )
    }

    pub(crate) fn lease(
        &mut self,
        who: &Identity,
        transaction: Transaction,
    ) -> Result<LeaseCert, Refusal> {
        match self.ask(who, transaction) {
            Reply::Lease(cert) => Ok(cert),
            Reply::Refused(refusal) => Err(refusal),
            other => panic!("{other:?}"),
        }
    }

    /// A new member with its identity and certificate.
    pub(crate) fn member(&mut self, name: &str) -> (Identity, MembershipCert) {
        let who = Identity::generate(&mut self.rng);
        let token = self.token(Roles::DEFAULT, 1);
        let cert = self.admit(&who, token, name).unwrap();
        (who, cert)
    }

    pub(crate) fn record(
        &self,
        who: &Identity,
        membership: &MembershipCert,
        leases: Vec<LeaseCert>,
        guests: Vec<Guest>,
    ) -> NodeRecord {
        NodeRecord {
            peer: who.peer_id(),
            network: self.network.id(),
            seq: self.unix * 1000,
            expires: self.unix + 7200,
            keys: DataKeys {
                x25519: who.peer_id().0,
                kem: vec![0; KEM_KEY_BYTES],
            },
            candidates: Vec::new(),
            control: Vec::new(),
            membership: membership.clone(),
            leases,
            guests,
            nat: ("unknown".into(), "unknown".into()),
            lan: None,
        }
    }
}

pub(crate) fn signed(record: NodeRecord, who: &Identity) -> Verified<NodeRecord> {
    Verified::sign(record, who).unwrap()
}

pub(crate) fn name(text: &str) -> Name {
    text.parse().unwrap()
}
