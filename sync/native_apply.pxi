# The receiving path: deltas that were delivered -> registry -> a batch of ctnetlink requests.
#
# It does what sync.replica.ReplicaTable and sync.applier.Applier do where nothing is special: the
# group is known and not held here, the sender is the node of the group's newest epoch and speaks
# under it, no version goes back, the flow is not rich, and nothing is expected of it. At anything
# else it stops, having changed nothing; the caller sends the batch and gives this one delta to the
# reference.

cdef enum:
    WATCHED_BYTES = 8192
    # What the longest datagram can have, at 26 bytes a delta.
    PREPARED_MAX = 80

cdef enum:
    # sync.registry.Flag
    FLAG_STALE = 1 << 0
    FLAG_UNSEEN = 1 << 1
    FLAG_UNPASSED = 1 << 3
    FLAG_TOUCHED = 1 << 2

cdef struct ReplicaView:
    # sync.replica.ReplicaGroup, read at the beginning of each call.
    uint64_t epoch
    bint known
    bint active
    bint suspect
    bint snapshot


cdef class Receiver:
    """Deltas in, a batch of requests out. Of one thread, with its FlowTable and its Batch."""

    cdef FlowTable table
    cdef dict groups
    cdef uint32_t hold_s
    cdef int tombstones_max
    cdef ReplicaView views[16]
    cdef uint8_t watched[8192]
    cdef readonly int watched_count
    cdef readonly Batch batch
    cdef readonly uint64_t taken
    cdef uint64_t destroy_unknown
    cdef uint64_t regressions
    cdef uint8_t newest_op
    # The deltas of one datagram, of which those before `next_prepared` are taken.
    cdef NativeDelta* prepared
    cdef uint64_t hashes[80]
    cdef uint32_t prepared_count
    cdef uint32_t next_prepared

    def __cinit__(self, FlowTable table not None, dict groups not None, uint32_t hold_s, int tombstones_max):
        self.table = table
        self.groups = groups
        self.hold_s = hold_s
        self.tombstones_max = tombstones_max
        self.batch = Batch()
        self.prepared = <NativeDelta*>malloc(PREPARED_MAX * sizeof(NativeDelta))
        if self.prepared == NULL:
            raise MemoryError

    def __dealloc__(self):
        free(self.prepared)

    # -- what goes the other way

    def watch(self, key):
        """Something is expected of this flow, or parked until it comes: from now on the reference
        handles it (and, harmlessly, the few whose hash begins alike)."""
        cdef uint32_t bit = <uint32_t>(self.table.hash_of(key) >> 48)
        if not self.watched[bit >> 3] >> (bit & 7) & 1:
            self.watched[bit >> 3] |= 1 << (bit & 7)
            self.watched_count += 1

    def unwatch_all(self):
        memset(self.watched, 0, sizeof(self.watched))
        self.watched_count = 0

    cdef inline bint is_watched(self, uint64_t h) noexcept nogil:
        cdef uint32_t bit = <uint32_t>(h >> 48)
        return self.watched_count != 0 and self.watched[bit >> 3] >> (bit & 7) & 1

    # -- deltas

    cdef int look(self) except -1:
        cdef ReplicaView* view
        memset(self.views, 0, sizeof(self.views))
        for number, group in self.groups.items():
            assert 1 <= number < 16, number  # A slot of group 0 is an empty one.
            view = &self.views[<int>number]
            view.known = True
            view.epoch = group.epoch
            view.active = group.active
            view.suspect = group.suspect
            view.snapshot = group.snapshot
        return 0

    def check(self, bytes payload not None, header_epoch):
        """`check_deltas`."""
        return check_deltas(payload, header_epoch)

    def take(self, bytes payload not None, uint32_t at, uint64_t header_epoch, int sender_id):
        """Handle live deltas from offset `at` on: where it stopped. That is the end; or the batch
        is full; or the delta there is one for the reference."""
        return self.walk(payload, at, header_epoch, sender_id, 0)

    def take_snapshot(self, bytes payload not None, uint32_t at, uint64_t header_epoch, int group):
        """As `take`, the entries of a snapshot of `group` that its holder has answered for."""
        assert 1 <= group < 16, group
        return self.walk(payload, at, header_epoch, 0, group)

    cdef uint32_t walk(
        self, bytes payload, uint32_t at, uint64_t header_epoch, int sender_id, int snapshot
    ) except? 0xFFFFFFFF:
        cdef const uint8_t* base = <const uint8_t*><const char*>payload
        cdef uint32_t total = <uint32_t>len(payload)
        cdef NativeDelta d
        cdef uint64_t h
        cdef bint done
        assert len(payload) <= 0x7FFFFFFF
        self.look()
        self.batch.begin(payload, header_epoch)
        if snapshot:
            assert self.views[snapshot].snapshot, "no snapshot is under way"
        while at < total and not self.batch.is_full():
            if read_delta(base, total, at, &header_epoch, &d):
                break
            h = flow_hash(&self.table.secret, &d.flow)
            if snapshot:
                done = not d.destroy and self.on_snapshot_entry(&d, h, snapshot)
            else:
                done = self.on_live(&d, h, sender_id)
            if not done:
                break
            self.taken += 1
            at = d.end
        return at

    cdef bint prepare(self, bytes payload, uint32_t at, uint64_t header_epoch) except -1:
        """Read all deltas of a payload of at most PREPARED_MAX, from offset `at` on, and have the
        registry's memory for them on its way. False if the reference is to read them."""
        cdef const uint8_t* base = <const uint8_t*><const char*>payload
        cdef uint32_t total = <uint32_t>len(payload)
        cdef uint32_t count = 0
        cdef NativeDelta* d
        self.prepared_count = self.next_prepared = 0
        while at < total:
            if count == PREPARED_MAX:
                return False
            d = &self.prepared[count]
            if read_delta(base, total, at, &header_epoch, d):
                return False
            at = d.end
            self.hashes[count] = flow_hash(&self.table.secret, &d.flow)
            self.table.fetch(self.hashes[count])
            count += 1
        self.prepared_count = count
        return True

    cdef bint take_prepared(self, bytes payload, uint64_t header_epoch, int sender_id) except -1:
        """As `take`, the live deltas that were prepared: whether all are done."""
        self.batch.begin(payload, header_epoch)
        while self.next_prepared < self.prepared_count:
            if self.batch.is_full():
                return False
            if not self.on_live(
                &self.prepared[self.next_prepared], self.hashes[self.next_prepared], sender_id
            ):
                return False
            self.taken += 1
            self.next_prepared += 1
        return True

    cdef uint32_t waiting(self) except? 0:
        """Where in its payload the prepared delta begins that is to be taken next."""
        assert self.next_prepared < self.prepared_count
        return self.prepared[self.next_prepared].start

    cdef inline bint on_live(self, NativeDelta* d, uint64_t h, int sender_id) except -1:
        return self.on_destroy(d, h, sender_id) if d.destroy else self.on_upsert(d, h, sender_id)

    def sweep(self, bytes dump not None, uint32_t at, int group, bint passing=False):
        """Delete what one receive of a dump shows of the group, or of the buckets that a repair of
        it is about, and the registry does not know or the snapshot has not named. `passing`: of
        all buckets what it does not know; what it knows has passed. (Where it stopped, how many):
        that is the end, or the batch is full. Raises MalformedMessageError."""
        cdef const uint8_t* base = <const uint8_t*><const char*>dump
        cdef const uint8_t* here = base + at
        cdef const uint8_t* end = base + len(dump)
        cdef uint8_t wanted[256]
        cdef int bucket
        cdef int more
        cdef int found = 0
        cdef Message message
        cdef Extras extras
        cdef NativeDelta d
        cdef uint64_t h
        cdef Slot* slot
        assert at <= <uint32_t>len(dump) and len(dump) <= 0x7FFFFFFF
        assert 1 <= group < 16, group
        buckets = None if passing else self.groups[group].buckets
        memset(wanted, buckets is None, sizeof(wanted))
        for bucket in buckets or ():
            assert 0 <= bucket < BUCKETS, bucket
            wanted[bucket] = 1
        self.batch.begin(dump, 0)
        while not self.batch.is_full():
            d.start = <uint32_t>(here - base)
            more = next_message(&here, end, &message)
            if more == 0:
                break
            if more < 0 or (message.kind == MSG_CT_NEW and parse_entry(&message, &d.flow, &extras) < 0):
                raise MalformedMessageError("a dump is cut, or shows an entry without both tuples")
            d.end = <uint32_t>(message.end - base)
            if message.kind != MSG_CT_NEW or <int>(d.flow.mark >> 28) != group:
                continue
            h = flow_hash(&self.table.secret, &d.flow)
            slot = self.table.find(h)
            if passing and slot != NULL:
                self.table.flag_slot(slot, FLAG_UNPASSED, False)
            elif wanted[h >> 56] and (slot == NULL or slot.hashed & FLAG_UNSEEN):
                self.ask(&d, APPLY_SWEEP)
                found += 1
        return <uint32_t>(here - base), found

    cdef inline bint authorized(self, const ReplicaView* group, const Slot* slot, const NativeDelta* d, int sender_id) noexcept nogil:
        """Its word counts and is not special. Else the reference says what comes of it."""
        if not group.known or group.active or d.epoch != group.epoch or d.count > 0xFFFF:
            return False
        if <int>(d.epoch & 0xFF) != sender_id:
            return False
        return slot == NULL or not self.is_older(d, slot)

    cdef inline bint is_older(self, const NativeDelta* d, const Slot* slot) noexcept nogil:
        cdef uint64_t known = self.table.epoch_of(slot)
        return d.epoch < known or (d.epoch == known and d.count < slot.count)

    cdef inline bint is_plain(self, const Slot* slot, unsigned int number) noexcept nogil:
        """Unknown, or known in this group and not rich."""
        return slot == NULL or (
            <unsigned int>(slot.group_tcp >> 4) == number and not slot.status & SLOT_RICH
        )

    cdef bint on_upsert(self, NativeDelta* d, uint64_t h, int sender_id) except -1:
        cdef unsigned int number = d.flow.mark >> 28
        cdef ReplicaView* group = &self.views[number]
        cdef Slot* slot
        if d.flow.rich or d.flow.labels_len or not group.known:
            return False
        slot = self.table.find(h)
        if not self.authorized(group, slot, d, sender_id):
            return False
        if not self.is_plain(slot, number) or self.is_watched(h):
            return False
        if not self.put(d, group, h, slot):
            return False
        if group.snapshot:
            slot = self.table.find(h)
            self.table.flag_slot(slot, FLAG_TOUCHED, True)
            self.table.flag_slot(slot, FLAG_UNSEEN, False)
        return True

    cdef bint on_snapshot_entry(self, NativeDelta* d, uint64_t h, int number) except -1:
        cdef Slot* slot
        if d.flow.rich or d.flow.labels_len or <int>(d.flow.mark >> 28) != number or d.count > 0xFFFF:
            return False
        slot = self.table.find(h)
        if slot != NULL and slot.hashed & FLAG_TOUCHED:
            return True  # The stream knows better.
        if h in self.groups[number].dead:
            return True
        if not self.is_plain(slot, number) or self.is_watched(h):
            return False
        if slot != NULL and self.is_older(d, slot):
            return False
        if not self.put(d, &self.views[number], h, slot):
            return False
        self.table.flag_slot(self.table.find(h), FLAG_UNSEEN, False)
        if self.newest_op != APPLY_UPDATE and self.newest_op != APPLY_UPDATE_WITHOUT_TCP:
            self.groups[number].repaired += 1
        return True

    cdef bint on_destroy(self, NativeDelta* d, uint64_t h, int sender_id) except -1:
        cdef Slot* slot = self.table.find(h)
        cdef unsigned int number
        cdef int other
        if self.is_watched(h):
            return False
        if slot == NULL:
            if <int>(d.epoch & 0xFF) == sender_id:
                for other in range(16):
                    if self.views[other].snapshot and not self.bury(other, h):
                        return False
            self.destroy_unknown += 1
            return True
        number = slot.group_tcp >> 4
        if not self.is_plain(slot, number) or not self.authorized(&self.views[number], slot, d, sender_id):
            return False
        if slot.incarnation != d.incarnation or slot.contribution != d.contribution:
            return False
        if self.views[number].snapshot and not self.bury(number, h):
            return False
        self.table.remove_slot(h, slot)
        self.ask(d, APPLY_REMOVE)
        return True

    cdef bint bury(self, int number, uint64_t h) except -1:
        """Remember that the stream destroyed it, for the snapshot under way."""
        cdef set dead = self.groups[number].dead
        if len(dead) >= self.tombstones_max:
            return False
        dead.add(h)
        return True

    cdef bint put(self, NativeDelta* d, const ReplicaView* group, uint64_t h, Slot* slot) noexcept:
        """ReplicaTable._flow_op. False, with nothing changed, if the table has no room."""
        cdef Value value
        cdef uint8_t op = APPLY_UPDATE
        cdef uint8_t known = TCP_STATE_NONE
        cdef bint stale = False
        cdef bint same = False
        value.contribution = flow_contribution(&self.table.secret, &d.flow, d.incarnation, d.flow.helper, 0)
        value.epoch = d.epoch
        value.incarnation = d.incarnation
        value.count = <uint16_t>d.count
        value.user_mark = <uint16_t>(d.flow.mark & 0xFFFF)
        value.group = <uint8_t>(d.flow.mark >> 28)
        value.tcp_state = d.flow.tcp_state if d.flow.has_tcp else TCP_STATE_NONE
        value.status = status_bits(d.flow.status)
        if slot != NULL:
            stale = slot.hashed & FLAG_STALE != 0
            same = slot.incarnation == d.incarnation and slot.contribution == value.contribution
            known = slot.group_tcp & 15
            if not d.flow.has_tcp:
                if slot.incarnation == d.incarnation:
                    value.tcp_state = known
            elif (
                same and not stale and known != TCP_STATE_NONE and d.flow.tcp_state < known
                and self.table.epoch_of(slot) == d.epoch and slot.count == d.count
            ):
                # Never back within one version: a snapshot can run ahead of the stream.
                op = APPLY_UPDATE_WITHOUT_TCP
                value.tcp_state = known
        if stale or (not same and (slot != NULL or group.suspect)):
            op = APPLY_REPLACE
        elif not same:
            op = APPLY_CREATE
        if self.table.put_value(h, &value) < 0:
            return False
        self.regressions += op == APPLY_UPDATE_WITHOUT_TCP
        if stale:
            self.table.flag_slot(self.table.find(h), FLAG_STALE, False)
        if slot != NULL:
            self.table.flag_slot(self.table.find(h), FLAG_UNPASSED, False)
        self.newest_op = op
        self.ask(d, op)
        return True

    cdef void ask(self, const NativeDelta* d, uint8_t op) noexcept:
        cdef Batch batch = self.batch
        cdef uint8_t* out = batch.next()
        if op == APPLY_CREATE:
            batch.add(d, op, write_create(out, &d.flow, self.hold_s, True))
        elif op == APPLY_REMOVE or op == APPLY_SWEEP:
            batch.add(d, op, write_delete(out, &d.flow))
        elif op == APPLY_REPLACE:
            batch.add(d, op, write_delete(out, &d.flow))
            batch.add(d, APPLY_REPLACE_PART_2, write_create(batch.next(), &d.flow, self.hold_s, True))
        else:
            batch.add(d, op, write_update(out, &d.flow, self.hold_s, op == APPLY_UPDATE))
        batch.ops += 1

    def take_counters(self):
        """What ReplicaTable would have counted, since the last call; None for nothing."""
        if not (self.destroy_unknown or self.regressions):
            return None  # Asked at each turn, and nearly always so.
        found = {"destroy_unknown": self.destroy_unknown, "tcp_regressions_refused": self.regressions}
        self.destroy_unknown = self.regressions = 0
        return {name: count for name, count in found.items() if count}
