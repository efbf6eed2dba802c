//! What a network is: its genesis, whose hash is its id, the documents that follow, and the key its members share.
//! Who is a member is [`crate::membership`]'s; who holds which address is [`crate::lease`]'s.

use crate::encoding::encode;
use crate::identity::Domain;
use crate::signed::{Certified, NotCertified, Signable};
use hkdf::Hkdf;
use overlay_types::{DhcpMode, Name, NetworkId, PeerId, Subnet};
use rand_chacha::ChaCha20Rng;
use rand_chacha::rand_core::RngCore;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::fmt;
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

/// The longest that an invite may be valid.
pub const INVITE_SECONDS_MAX: u64 = 30 * 86_400;
/// How long a lease lasts when the network document says nothing else.
pub const LEASE_SECONDS_DEFAULT: u32 = 24 * 3600;
/// The shortest lease: it must be well longer than twice the guard.
pub const LEASE_SECONDS_MIN: u32 = 300;
/// The MTU inside a network whose owner names none.
pub const MTU_DEFAULT: u16 = 1500;
/// The smallest MTU inside a network: IPv6 needs it (RFC 8200 §5).
pub const MTU_MIN: u16 = 1280;
/// The largest MTU inside a network: jumbo frames as switches and clouds have them.
pub const MTU_MAX: u16 = 9000;
/// The largest registrar group.
pub const VOTERS_MAX: usize = 7;
/// The most admins.
pub const ADMINS_MAX: usize = 16;
/// How many groups of the past we keep, to check certificates that they signed.
const GROUPS_MAX: usize = 64;
/// How many documents a network may have behind it; far more than owners make by hand.
const DOCUMENTS_MAX: usize = 1024;

/// The registrars that vote, in one epoch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Group {
    /// Rises with every change of the group.
    pub epoch: u64,
    /// Who votes; 1 to [`VOTERS_MAX`], sorted.
    pub voters: Vec<PeerId>,
}

impl Group {
    /// How many voters make a majority.
    pub const fn majority(&self) -> usize {
        self.voters.len() / 2 + 1
    }

    /// Whether `peer` votes.
    pub fn contains(&self, peer: PeerId) -> bool {
        self.voters.contains(&peer)
    }

    fn is_sound(&self) -> bool {
        (1..=VOTERS_MAX).contains(&self.voters.len()) && self.voters.is_sorted_by(|a, b| a < b)
    }
}

/// The first word on a network; its hash is the network's id, so it never changes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Genesis {
    /// Makes two networks of one name different.
    pub nonce: [u8; 16],
    /// The owner's name for it.
    pub name: Name,
    /// Where addresses come from.
    pub subnet: Subnet,
    /// Who serves them.
    pub dhcp: DhcpMode,
    /// The largest IP packet of its stations, in bytes; [`MTU_MIN`] to [`MTU_MAX`].
    pub mtu: u16,
    /// Whose signatures change the network.
    pub admins: Vec<PeerId>,
    /// How many of them it takes.
    pub threshold: u8,
    /// The first registrar group.
    pub registrars: Group,
}

impl Genesis {
    /// A new network of one owner, who is its only admin and registrar, with the default MTU.
    pub fn new(
        rng: &mut ChaCha20Rng,
        name: Name,
        subnet: Subnet,
        dhcp: DhcpMode,
        owner: PeerId,
    ) -> Self {
        let mut nonce = [0; 16];
        rng.fill_bytes(&mut nonce);
        let registrars = Group {
            epoch: 1,
            voters: vec![owner],
        };
        Self {
            nonce,
            name,
            subnet,
            dhcp,
            mtu: MTU_DEFAULT,
            admins: vec![owner],
            threshold: 1,
            registrars,
        }
    }

    /// The network's id.
    pub fn id(&self) -> NetworkId {
        NetworkId(hash("farlan-1 genesis", &encode(self)))
    }
}

/// One version of a network's settings.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkDocument {
    /// Whose.
    pub network: NetworkId,
    /// Counts up by one; version 0 follows from the genesis and needs no signature.
    pub version: u64,
    /// Hash of the document before.
    pub previous: [u8; 32],
    /// Where addresses come from.
    pub subnet: Subnet,
    /// Who serves them.
    pub dhcp: DhcpMode,
    /// The largest IP packet of its stations, in bytes; [`MTU_MIN`] to [`MTU_MAX`].
    pub mtu: u16,
    /// How long a lease lasts.
    pub lease_seconds: u32,
    /// The DNS zone, as `lab.farlan`.
    pub zone: String,
    /// Whose signatures make the next version.
    pub admins: Vec<PeerId>,
    /// How many of them it takes.
    pub threshold: u8,
    /// Who votes on leases.
    pub registrars: Group,
}

impl NetworkDocument {
    /// What the next version chains to.
    pub fn hash(&self) -> [u8; 32] {
        hash("farlan-1 network document", &encode(self))
    }

    /// A copy to edit into the next version.
    pub fn successor(&self) -> Self {
        Self {
            version: self.version + 1,
            previous: self.hash(),
            ..self.clone()
        }
    }

    fn is_sound(&self) -> bool {
        let admins = self.admins.len();
        (1..=ADMINS_MAX).contains(&admins)
            && (1..=admins).contains(&usize::from(self.threshold))
            && self
                .admins
                .iter()
                .enumerate()
                .all(|(i, a)| !self.admins[..i].contains(a))
            && self.lease_seconds >= LEASE_SECONDS_MIN
            && self.zone.len() <= 253
            && (MTU_MIN..=MTU_MAX).contains(&self.mtu)
            && self.registrars.is_sound()
    }
}

impl Signable for NetworkDocument {
    const DOMAIN: Domain = Domain::NetworkDocument;
    const SIZE_MAX: usize = 4096;
}

/// A document with its admins' signatures.
pub type SignedDocument = Certified<NetworkDocument>;

/// A network as far as we know it: its genesis and the chain of documents, every link checked.
#[derive(Clone, Debug)]
pub struct Network {
    id: NetworkId,
    genesis: Genesis,
    documents: Vec<SignedDocument>,
    current: NetworkDocument,
    groups: BTreeMap<u64, Group>,
}

impl Network {
    /// The network that begins with `genesis`. Whoever has an id compares it with [`Network::id`].
    ///
    /// # Errors
    /// [`InvalidNetwork::Unsound`] when it contradicts itself.
    pub fn new(genesis: Genesis) -> Result<Self, InvalidNetwork> {
        let id = genesis.id();
        let current = NetworkDocument {
            network: id,
            version: 0,
            previous: id.0,
            subnet: genesis.subnet,
            dhcp: genesis.dhcp,
            mtu: genesis.mtu,
            lease_seconds: LEASE_SECONDS_DEFAULT,
            zone: format!("{}.farlan", genesis.name),
            admins: genesis.admins.clone(),
            threshold: genesis.threshold,
            registrars: genesis.registrars.clone(),
        };
        if !current.is_sound() {
            return Err(InvalidNetwork::Unsound);
        }
        let groups = BTreeMap::from([(current.registrars.epoch, current.registrars.clone())]);
        Ok(Self {
            id,
            genesis,
            documents: Vec::new(),
            current,
            groups,
        })
    }

    /// Adds the next document. `Ok(false)` means that we have it already.
    ///
    /// # Errors
    /// [`InvalidNetwork`]; the caller keeps what it has.
    pub fn apply(&mut self, signed: SignedDocument) -> Result<bool, InvalidNetwork> {
        if signed.network != self.id {
            return Err(InvalidNetwork::OtherNetwork);
        }
        if signed.version <= self.current.version {
            return Ok(false);
        }
        if signed.version != self.current.version + 1 || signed.previous != self.current.hash() {
            return Err(InvalidNetwork::Gap {
                have: self.current.version,
                got: signed.version,
            });
        }
        if !signed.is_sound() || self.documents.len() == DOCUMENTS_MAX {
            return Err(InvalidNetwork::Unsound);
        }
        let (was, will) = (&self.current.registrars, &signed.registrars);
        if was != will && will.epoch <= was.epoch {
            return Err(InvalidNetwork::Unsound);
        }
        signed.verify(&self.current.admins, self.current.threshold.into())?;
        self.groups
            .insert(signed.registrars.epoch, signed.registrars.clone());
        if self.groups.len() > GROUPS_MAX {
            self.groups.pop_first();
        }
        self.current = signed.body.clone();
        self.documents.push(signed);
        Ok(true)
    }

    /// Hash of the genesis.
    pub const fn id(&self) -> NetworkId {
        self.id
    }

    /// The owner's name for it.
    pub const fn name(&self) -> &Name {
        &self.genesis.name
    }

    /// Where it began.
    pub const fn genesis(&self) -> &Genesis {
        &self.genesis
    }

    /// The settings in force.
    pub const fn document(&self) -> &NetworkDocument {
        &self.current
    }

    /// Every signed document, oldest first, to hand to a newcomer.
    pub fn documents(&self) -> &[SignedDocument] {
        &self.documents
    }

    /// The registrars that vote now.
    pub const fn group(&self) -> &Group {
        &self.current.registrars
    }

    /// The registrars that voted in `epoch`.
    pub fn group_of(&self, epoch: u64) -> Option<&Group> {
        self.groups.get(&epoch)
    }
}

/// Why a genesis or document is refused.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum InvalidNetwork {
    /// No admin, no registrar, a threshold nobody can reach, a lease too short, …
    #[error("the network document contradicts itself")]
    Unsound,
    /// It is about another network.
    #[error("the document belongs to another network")]
    OtherNetwork,
    /// Versions between are missing: ask for them.
    #[error("document version {got} does not follow version {have}; ask for those between")]
    Gap {
        /// Ours.
        have: u64,
        /// What came.
        got: u64,
    },
    /// The admins did not sign it.
    #[error("the admins did not sign the document: {0}")]
    NotCertified(#[from] NotCertified),
}

/// The key that all members share, and nobody else. Revocation starts a new epoch of it.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Zeroize, ZeroizeOnDrop)]
pub struct NetworkSecret {
    /// Counts up from 1.
    pub epoch: u32,
    key: [u8; 32],
}

/// Rendezvous keys change weekly: an invite carries the one of the week in which it expires.
const RENDEZVOUS_PERIOD: u64 = 7 * 86_400;

impl NetworkSecret {
    /// The first epoch's key.
    pub fn generate(rng: &mut ChaCha20Rng) -> Self {
        let mut key = [0; 32];
        rng.fill_bytes(&mut key);
        Self { epoch: 1, key }
    }

    /// The key of the next epoch: fresh, so that whoever knew the old one learns nothing.
    pub fn next(&self, rng: &mut ChaCha20Rng) -> Self {
        Self {
            epoch: self.epoch + 1,
            ..Self::generate(rng)
        }
    }

    /// The pre-shared key of the tunnel's handshakes.
    pub fn psk(&self, network: NetworkId) -> Zeroizing<[u8; 32]> {
        self.derive(network, "farlan-1 tunnel psk", 0)
    }

    /// What the network's slot keys derive from ([`crate::slot::SlotKey::derive`]).
    pub fn slot_root(&self, network: NetworkId) -> Zeroizing<[u8; 32]> {
        self.derive(network, "farlan-1 slot root", 0)
    }

    /// The rendezvous key of an invite that expires at `expires` (unix seconds).
    pub fn rendezvous_key(&self, network: NetworkId, expires: u64) -> Zeroizing<[u8; 32]> {
        self.derive(network, "farlan-1 rendezvous", expires / RENDEZVOUS_PERIOD)
    }

    /// The rendezvous keys under which registrars announce themselves at `unix`: one for each week in which
    /// an invite that is alive now may expire, so that no list of invites has to be kept for it.
    pub fn rendezvous_keys(&self, network: NetworkId, unix: u64) -> Vec<Zeroizing<[u8; 32]>> {
        let last = (unix + INVITE_SECONDS_MAX) / RENDEZVOUS_PERIOD;
        (unix / RENDEZVOUS_PERIOD..=last)
            .map(|week| self.derive(network, "farlan-1 rendezvous", week))
            .collect()
    }

    fn derive(&self, network: NetworkId, label: &str, number: u64) -> Zeroizing<[u8; 32]> {
        let mut out = Zeroizing::new([0; 32]);
        Hkdf::<Sha256>::new(Some(&network.0), &self.key)
            .expand_multi_info(&[label.as_bytes(), &number.to_be_bytes()], &mut *out)
            .expect("32 bytes are within HKDF's 255 blocks");
        out
    }
}

impl fmt::Debug for NetworkSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "NetworkSecret(epoch {})", self.epoch)
    }
}

fn hash(label: &str, bytes: &[u8]) -> [u8; 32] {
    Sha256::new()
        .chain_update(label)
        .chain_update([0])
        .chain_update(bytes)
        .finalize()
        .into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::Identity;
    use rand_chacha::rand_core::SeedableRng;

    fn network() -> (Identity, Network) {
        let mut rng = ChaCha20Rng::seed_from_u64(3);
        let owner = Identity::generate(&mut rng);
        let subnet = "10.77.0.0/16".parse().expect("a subnet");
        let genesis = Genesis::new(
            &mut rng,
            "lab".parse().expect("a name"),
            subnet,
            DhcpMode::Overlay,
            owner.peer_id(),
        );
        (owner, Network::new(genesis).expect("a sound genesis"))
    }

    fn signed(body: NetworkDocument, by: &[&Identity]) -> SignedDocument {
        let signatures = by
            .iter()
            .map(|admin| Certified::sign(&body, admin))
            .collect();
        Certified { body, signatures }
    }

    #[test]
    fn the_id_is_the_hash_of_the_genesis() {
        let (_, network) = network();
        let mut other = network.genesis().clone();
        assert_eq!(other.id(), network.id());
        other.dhcp = DhcpMode::Off;
        assert_ne!(other.id(), network.id());
    }

    #[test]
    fn a_document_takes_the_admins_of_the_one_before_it() {
        let (owner, mut network) = network();
        let second = Identity::generate(&mut ChaCha20Rng::seed_from_u64(4));
        let mut two = network.document().successor();
        two.admins = vec![owner.peer_id(), second.peer_id()];
        two.threshold = 2;

        let by_the_new_one = network.apply(signed(two.clone(), &[&second]));
        assert!(matches!(
            by_the_new_one,
            Err(InvalidNetwork::NotCertified(_))
        ));
        assert_eq!(network.apply(signed(two.clone(), &[&owner])), Ok(true));
        assert_eq!(
            network.apply(signed(two, &[&owner])),
            Ok(false),
            "we have it"
        );

        let mut three = network.document().successor();
        three.lease_seconds = 7200;
        assert!(
            network.apply(signed(three.clone(), &[&owner])).is_err(),
            "it takes both now"
        );
        assert!(
            network
                .apply(signed(three.clone(), &[&owner, &owner]))
                .is_err(),
            "twice the same is one"
        );
        assert_eq!(network.apply(signed(three, &[&owner, &second])), Ok(true));
        assert_eq!(
            (network.document().version, network.document().lease_seconds),
            (2, 7200)
        );
    }

    #[test]
    fn documents_chain_without_gaps_and_keep_old_groups_known() {
        let (owner, mut network) = network();
        let mut skipped = network.document().successor();
        skipped.version += 1;
        assert_eq!(
            network.apply(signed(skipped, &[&owner])),
            Err(InvalidNetwork::Gap { have: 0, got: 2 })
        );
        let mut unsound = network.document().successor();
        unsound.threshold = 2;
        assert_eq!(
            network.apply(signed(unsound, &[&owner])),
            Err(InvalidNetwork::Unsound)
        );

        let mut grown = network.document().successor();
        let mut voters = vec![owner.peer_id(), PeerId([1; 32])];
        voters.sort();
        grown.registrars = Group { epoch: 1, voters };
        assert_eq!(
            network.apply(signed(grown.clone(), &[&owner])),
            Err(InvalidNetwork::Unsound),
            "another group, another epoch"
        );
        grown.registrars.epoch = 2;
        assert_eq!(network.apply(signed(grown, &[&owner])), Ok(true));
        assert_eq!(network.group_of(1).map(Group::majority), Some(1));
        assert_eq!(network.group().majority(), 2);
    }

    #[test]
    fn keys_differ_by_purpose_network_and_epoch() {
        let mut rng = ChaCha20Rng::seed_from_u64(5);
        let first = NetworkSecret::generate(&mut rng);
        let second = first.next(&mut rng);
        let (a, b) = (NetworkId([1; 32]), NetworkId([2; 32]));
        let keys = [
            first.psk(a),
            first.psk(b),
            second.psk(a),
            first.slot_root(a),
            first.rendezvous_key(a, 0),
        ];
        assert!(
            keys.iter()
                .enumerate()
                .all(|(i, key)| !keys[..i].contains(key))
        );
        assert_eq!(second.epoch, 2);
    }

    #[test]
    fn registrars_announce_under_the_key_of_every_live_invite() {
        let secret = NetworkSecret::generate(&mut ChaCha20Rng::seed_from_u64(6));
        let (id, now) = (NetworkId([1; 32]), 1_800_000_000);
        let announced = secret.rendezvous_keys(id, now);
        for days in [0, 1, 7, 29, 30] {
            assert!(
                announced.contains(&secret.rendezvous_key(id, now + days * 86_400)),
                "an invite of {days} days"
            );
        }
        assert!(announced.len() <= 6);
    }
}
