//! Admission and leases: questions to the registrar, its answers, and what follows from them.

use super::*;

/// How long a registrar's disk takes.
const DISK_TIME: Duration = Duration::from_millis(5);

impl Overlay {
    pub(super) fn registrar(&mut self) -> Registrar {
        let rng = ChaCha20Rng::seed_from_u64(self.world.rng.random());
        let owner = &mut self.members[Self::OWNER.0];
        let is_fresh = !std::mem::replace(&mut owner.disk.has_voted, true);
        let votes = owner.disk.votes.clone();
        Registrar::new(
            owner.identity.clone(),
            self.network.clone(),
            votes,
            is_fresh,
            rng,
            self.world.now(),
        )
        .expect("its disk holds what it wrote")
    }

    /// Asks the registrar.
    pub(super) fn ask(&mut self, id: MemberId, of: LeaseOf, transaction: Transaction) {
        self.next_question += 1;
        let question = self.next_question;
        self.running(id).asked.insert(question, of);
        self.plan(id, ANSWER_TIME_MAX, Errand::Unanswered { question });
        let (host, owner, from_life) = (
            self.member(id).host,
            self.member(Self::OWNER).host,
            self.member(id).life,
        );
        let asked = Errand::Asked {
            from: id,
            from_life,
            question,
            transaction: Box::new(transaction),
        };
        if id == Self::OWNER {
            self.plan(id, Duration::ZERO, asked);
        } else if self.has_control(host, owner) {
            self.send(Self::OWNER, asked);
        }
    }

    /// The registrar's answer is here.
    pub(super) fn answer(&mut self, id: MemberId, of: LeaseOf, reply: Reply) {
        let (now, unix) = (self.world.now(), self.unix());
        match reply {
            Reply::Member(cert) => {
                self.members[id.0].disk.membership = Some(cert);
                self.enter(id);
            }
            reply => {
                let network = self.network.clone();
                match self.members[id.0].holder(of) {
                    Some(holder) => holder.handle_reply(reply, &network, now, unix),
                    None => self.plan(id, RETRY, Errand::Admit),
                }
            }
        }
    }

    /// A member that has its certificate goes onto the network.
    pub(super) fn enter(&mut self, id: MemberId) {
        let (now, unix, network) = (self.world.now(), self.unix(), self.network.id());
        let member = &mut self.members[id.0];
        let want = Want::Address {
            mac: member.mac(),
            name: Some(member.name.clone()),
        };
        let holder = LeaseHolder::new(
            member.identity.clone(),
            want,
            member.disk.lease.clone(),
            now,
            unix,
        );
        let (me, keys, mac) = (member.peer(), member.keys(), member.mac());
        self.running(id).holder = Some(holder);
        let psk = self.secret.psk(network);
        self.command(
            id,
            Command::AddNetwork {
                id: network,
                me,
                keys,
                psk,
                dhcp: DhcpMode::Overlay,
                mtu: 1500,
            },
        );
        self.command(
            id,
            Command::AddPort {
                network,
                port: STATION,
                kind: PortKind::Host,
                macs: vec![mac],
            },
        );
        self.plug_guests(id);
        self.refresh_soon(id);
        self.sync_soon(id);
        self.publish_soon(id);
    }

    /// A lease machine said something: the station, or the guests' server, follows its lease.
    pub(super) fn hold(&mut self, id: MemberId, of: LeaseOf, event: HolderEvent) {
        let lease = match event {
            HolderEvent::Held(cert) => Some(*cert),
            HolderEvent::Lost { .. } => None,
            HolderEvent::Waiting(_) | HolderEvent::Released => return,
        };
        match &lease {
            Some(cert) => self
                .world
                .note(format_args!("member {} holds {}", id.0, cert.subject)),
            None => self
                .world
                .note(format_args!("member {} has no lease for {of:?}", id.0)),
        }
        match of {
            LeaseOf::Node => self.address_station(id, lease.as_ref()),
            LeaseOf::Guests => self.tell_blocks(id),
        }
        if let Some(cert) = lease {
            let disk = &mut self.members[id.0].disk;
            match of {
                LeaseOf::Node => disk.lease = Some(cert),
                LeaseOf::Guests => disk.block = Some(cert),
            }
        }
        self.refresh_soon(id);
        self.publish_soon(id);
    }

    /// Gives the member's own station its address, or takes it away.
    fn address_station(&mut self, id: MemberId, lease: Option<&LeaseCert>) {
        let (host, mac) = (self.member(id).host, self.member(id).mac());
        let Some(Subject::Address(address)) = lease.map(|cert| cert.subject) else {
            self.world
                .with_node(host, |node, _| node.guests.remove(&STATION));
            return;
        };
        self.world.with_node(host, |node, _| {
            let station = node.guests.get(&STATION);
            if station.is_none_or(|station| station.ip != address) {
                node.guests.insert(STATION, Guest::new(mac, address));
            }
        });
        let network = self.network.clone();
        if let Some(service) = &mut self.running(id).service {
            service.set_server(&network, mac, address);
        }
    }

    /// The registrar wants something done.
    pub(super) fn serve(&mut self, event: RegistrarEvent) {
        let (now, unix) = (self.world.now(), self.unix());
        match event {
            RegistrarEvent::Persist { id, records } => {
                self.members[Self::OWNER.0].disk.votes.extend(records);
                self.plan(Self::OWNER, DISK_TIME, Errand::Persisted(id));
            }
            RegistrarEvent::Reply { id, reply } => self.reply(id, *reply),
            RegistrarEvent::AskMembers => {
                let certificates = self.certificates.clone();
                if let Some(registrar) = &mut self.running(Self::OWNER).registrar {
                    registrar.handle_certificates(&certificates);
                    registrar.handle_members_asked(now, unix);
                }
            }
            RegistrarEvent::RolledBack => panic!("no disk was ever set back"),
        }
    }

    fn reply(&mut self, number: u64, reply: Reply) {
        let Some(question) = self.questions.remove(&number) else {
            return;
        };
        if let Reply::Lease(cert) = &reply {
            self.certificates.push(cert.clone());
        }
        let to = question.from;
        let answered = Errand::Answered {
            question: question.number,
            reply: Box::new(reply),
        };
        let (host, owner) = (self.member(to).host, self.member(Self::OWNER).host);
        if question.from_life != self.member(to).life || !self.has_control(owner, host) {
            return;
        }
        if to == Self::OWNER {
            self.plan(to, Duration::ZERO, answered);
        } else {
            self.send(to, answered);
        }
    }
}
