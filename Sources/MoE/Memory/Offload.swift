import CShims

// Experts larger than memory: their matrices stay in a file, and some are in slots. A chunk's experts are computed in waves:
// those that are there first, while a helper thread reads the others into slots of experts that are not needed any more.
// Each expert's rows are computed by themselves, so waves change no bit.

/// What a layer has whose experts' matrices are in a file. Its many fields are arrays, in which an expert, a slot or a
/// reader has a number each, and the locks between them.
public struct Offload {
  let files: ExpertFiles
  private let limit: ResidentLimit  // of slots, and of what reading takes
  fileprivate let turn: Lock  // forward calls share the slots, so they take turns
  fileprivate let fetching: Fetching
  fileprivate let fetches: UnsafeMutablePointer<Fetch>  // [experts] of one chunk, in the order in which they are read
  fileprivate let missing: UnsafeMutablePointer<Int>  // [1] how many there will be
  fileprivate let failure: UnsafeMutablePointer<Failure>  // [readers]
  fileprivate let slotOf: UnsafeMutablePointer<Int32>  // [experts]: -1 = not in memory
  fileprivate let expertIn: UnsafeMutablePointer<Int32>  // [slots, at most experts]: -1 = none
  fileprivate let stage: UnsafeMutablePointer<Stage>  // [experts]
  fileprivate let wave: UnsafeMutablePointer<Bool>  // [experts]
  /// [experts] tokens of each, a chunk's counting more than those of the chunk before.
  fileprivate let score: UnsafeMutablePointer<Float>
  private let counters: (hits: SharedCounter, misses: SharedCounter, bytes: SharedCounter)
  fileprivate var slots: SlotMemory?

  typealias Fetch = (expert: Int, slot: Int)
  /// Of the system and a descriptor; or notHeld and an expert's number.
  typealias Failure = (error: Int32, file: Int32)
  static var notHeld: Int32 { .min }

  /// Of an expert in a chunk. The raw type is for the linker, see ExpertForm.
  fileprivate enum Stage: UInt8 {
    case unused, missing, asked, ready, done
  }

  /// The helper is 0, the calling thread 1.
  static var readers: Int { 2 }

  /// Frequency and recency in one number, the sum of 0.875^age over uses [Lee et al. 2001, LRFU, IEEE Trans. Computers 50(12)].
  fileprivate static var fading: Float { 0.875 }

  init(_ arena: inout Arena, _ files: ExpertFiles, limit: ResidentLimit) {
    let experts = files.group.experts
    self.files = files
    self.limit = limit
    turn = Lock(&arena)
    fetching = Fetching(&arena, most: experts)
    fetches = arena.take(Fetch.self, experts)
    missing = arena.take(Int.self, 1)
    failure = arena.take(Failure.self, Self.readers)
    slotOf = arena.take(Int32.self, experts)
    expertIn = arena.take(Int32.self, experts)
    stage = arena.take(Stage.self, experts)
    wave = arena.take(Bool.self, experts)
    score = arena.take(Float.self, experts)
    counters = (SharedCounter(&arena), SharedCounter(&arena), SharedCounter(&arena))
  }

  func initialise() {
    turn.initialise()
    score.initialize(repeating: 0, count: experts)
    counters.hits.set(0)
    counters.misses.set(0)
    counters.bytes.set(0)
  }

  var group: Int { files.group.index }
  private var experts: Int { files.group.experts }

  // MARK: slots

  /// Slots of a form, as many as the limit allows, and the size of their memory.
  func layOut(_ c: Configuration, form: SlotForm) throws(Fault) -> (count: Int, bytes: Int) {
    func bytes(_ count: Int) throws(Fault) -> Int {
      try Arena.bytes { memory(&$0, c, form, count) }
    }
    // Panels of other groups, which are no part of the limit.
    var others = Arena()
    _ = form.groups(&others, c, slots: (group, 0))
    let none = try bytes(0)
    let beside = none - (try others.total())
    let one = try bytes(1) - none
    let least = min(Self.fewestSlots, experts)
    let (slots, overflow) = one.multipliedReportingOverflow(by: least)
    if overflow || slots > .max - beside { throw .outOfMemory(bytes: .max) }
    guard limit.bytes >= beside + slots else { throw limit.exceeded(by: beside + slots, experts: least) }
    let count = min((limit.bytes - beside) / one, experts)
    return (count, try bytes(count))
  }

  /// One to compute, one to read.
  private static var fewestSlots: Int { 2 }

  func memory(_ arena: inout Arena, _ c: Configuration, _ form: SlotForm, _ count: Int) -> SlotMemory {
    SlotMemory(
      &arena, c, files.group, form: form, count: count, slotOf: slotOf,
      rawBytes: files.rawBytes(form.sources(files.group)))
  }

  /// Empty slots, in place of those there were.
  mutating func use(_ memory: SlotMemory) {
    slots = memory
    slotOf.initialize(repeating: -1, count: experts)
    expertIn.initialize(repeating: -1, count: memory.count)
  }

  // MARK: statistics

  public struct Statistics {
    public let hits: Int
    public let misses: Int
    public let bytes: Int
    public let slots: Int
  }

  var statistics: Statistics {
    Statistics(
      hits: counters.hits.value, misses: counters.misses.value, bytes: counters.bytes.value, slots: slots?.count ?? 0)
  }

  // MARK: reading, by the helper or the caller

  fileprivate func fetch(_ i: Int, reader: Int) -> Bool {
    let (expert, slot) = fetches[i]
    let found =
      switch files {
      case .stored(let stored): read(stored, expert, to: slot, reader)
      case .packed(let packed): packed.read(expert, to: slots!.prepared.of(packed.group)!, at: slot)
      }
    failure[reader] = found
    if found.error != 0 { return false }
    counters.bytes.add(files.bytes(expert))
    return true
  }

  private func read(
    _ stored: StoredExperts, _ expert: Int, to slot: Int, _ reader: Int
  ) -> Failure {
    let (slots, group) = (slots!, stored.group)
    let raw = slots.raw + reader * slots.rawBytes
    guard let prepared = slots.prepared.of(group) else {
      return stored.read(expert, to: slots.rows, at: slot, raw: raw)
    }
    if let sources = slots.sources { return stored.pack(expert, sources, to: prepared, at: slot, raw: raw) }
    let found = stored.read(expert, to: slots.rows, at: reader, raw: raw)
    if found.error != 0 { return found }
    let packing = Packing(c: group, kernels: stored.kernels, prepared: prepared)
    for chunk in 0..<packing.chunksPerExpert {
      // What a form cannot hold comes out as numbers that are not finite.
      _ = packing.run(chunk, place: slot, slots.rows.tensors(group, at: reader))
    }
    return found
  }

  // MARK: stages

  /// Notes what a chunk needs; returns how many experts are not there.
  fileprivate func begin(_ rows: GroupRows) -> Int {
    var (hits, misses) = (0, 0)
    for e in 0..<experts {
      let count = rows.count(ofExpert: e)
      score[e] = score[e] * Self.fading + Float(count)
      stage[e] = count == 0 ? .unused : slotOf[e] < 0 ? .missing : .ready
      if stage[e] == .missing { misses += 1 }
      if stage[e] == .ready { hits += 1 }
    }
    counters.hits.add(hits)
    counters.misses.add(misses)
    return misses
  }

  /// A slot whose expert is not needed any more in this chunk: empty, or the one of the lowest score.
  fileprivate func freeSlot() -> Int? {
    var best: Int?
    for slot in 0..<slots!.count {
      let expert = Int(expertIn[slot])
      if expert < 0 { return slot }
      guard stage[expert] == .unused || stage[expert] == .done else { continue }
      if let found = best, score[Int(expertIn[found])] <= score[expert] { continue }
      best = slot
    }
    return best
  }

  /// Marks at most `most` experts that can be computed as the next wave: of those that were read first, since the slots they
  /// are in are wanted again, then those of the lowest score. Returns how many, and how many of them were read.
  fileprivate func nextWave(atMost most: Int, of read: Range<Int>) -> (count: Int, read: Int) {
    wave.update(repeating: false, count: experts)
    var (count, ofRead) = (0, 0)
    for i in read where count < most && stage[fetches[i].expert] == .ready {
      wave[fetches[i].expert] = true
      count += 1
      ofRead += 1
    }
    while count < most {
      var lowest: Int?
      for e in 0..<experts where stage[e] == .ready && !wave[e] {
        if let found = lowest, score[found] <= score[e] { continue }
        lowest = e
      }
      guard let lowest else { break }
      wave[lowest] = true
      count += 1
    }
    return (count, ofRead)
  }

  /// The last wave: all experts of what is read that can be computed.
  fileprivate func lastWave(of read: Range<Int>) -> (count: Int, read: Int) {
    var (count, ofRead) = (0, 0)
    for e in 0..<experts {
      wave[e] = stage[e] == .ready
      if wave[e] { count += 1 }
    }
    for i in read where wave[fetches[i].expert] { ofRead += 1 }
    return (count, ofRead)
  }

  fileprivate func markWaveDone() {
    for e in 0..<experts where wave[e] { stage[e] = .done }
  }
}

public typealias OffloadPointer = UnsafeMutablePointer<Offload>

extension UnsafeMutablePointer where Pointee == Offload {
  /// Runs `body` over waves of the group's experts, until all that have rows have been in one. `body` gets [experts], true for
  /// those of the wave.
  func forEachWave(
    _ rows: GroupRows, in context: ContextPointer, _ body: (UnsafePointer<Bool>) throws(Fault) -> Void
  ) throws(Fault) {
    try pointee.turn.acquire(for: "layer")
    defer { pointee.turn.release() }
    var waves = Waves(self, rows)
    do throws(Fault) {
      try waves.run(in: context, body)
    } catch {
      waves.end(abandon: true)
      throw error
    }
    waves.end(abandon: false)
  }
}

private func serveFetches(_ offload: UnsafeMutableRawPointer?) -> UnsafeMutableRawPointer? {
  let offload = offload!.assumingMemoryBound(to: Offload.self)
  offload.pointee.fetching.serve(offload.pointee.missing.pointee) { offload.pointee.fetch($0, reader: 0) }
  return nil
}

/// One chunk's experts.
private struct Waves {
  private let offload: OffloadPointer
  private let missing: Int
  private let hasHelper: Bool
  // Of the missing ones:
  private var asked = 0
  private var taken = 0  // have arrived, and we know
  private var computed = 0
  private var next = 0  // expert with which to look for another

  /// Slots that are being read into, or were and have not been computed, and experts of a wave while others are missing: few, so
  /// that experts with many tokens stay.
  private var atOnce: Int { max(1, min(4, offload.pointee.slots!.count / 2)) }

  init(_ offload: OffloadPointer, _ rows: GroupRows) {
    self.offload = offload
    missing = offload.pointee.begin(rows)
    offload.pointee.missing.pointee = missing
    hasHelper = missing > 0 && offload.pointee.fetching.start(missing, serveFetches, offload)
  }

  mutating func run(
    in context: ContextPointer, _ body: (UnsafePointer<Bool>) throws(Fault) -> Void
  ) throws(Fault) {
    let fetching = offload.pointee.fetching
    while true {
      ask()
      take()
      let read = 0..<asked
      let wave =
        asked < missing
        ? offload.pointee.nextWave(atMost: atOnce, of: read) : offload.pointee.lastWave(of: read)
      if wave.count > 0 {
        try body(offload.pointee.wave)
        offload.pointee.markWaveDone()
        computed += wave.read
      } else if computed == missing {
        return
      } else if let i = fetching.claim(of: asked) {
        // Two read faster than one, and the helper may not have been given a processor yet.
        if !offload.pointee.fetch(i, reader: 1) { throw failure(of: 1) }
        fetching.note(i)
      } else {
        if fetching.isInParent { throw .forkedWithin }
        fetching.wait(forMoreThan: taken)
        if fetching.hasFailed && fetching.countArrived == taken { throw failure(of: 0) }
        try context.askWhetherToStop()
      }
    }
  }

  private func failure(of reader: Int) -> Fault {
    let failure = offload.pointee.failure[reader]
    if failure.error == Offload.notHeld {
      return Fault(
        .notFinite,
        "a scale or a number of expert \(Int(failure.file)) in the file is not finite: download the file again, or load it without packing"
      )
    }
    return .io("reading an expert", failure.file, failure.error)
  }

  /// Asks for missing experts as far as there are slots for them.
  private mutating func ask() {
    let o = offload.pointee
    while asked < missing && asked - computed < atOnce, let slot = o.freeSlot() {
      while o.stage[next] != .missing { next += 1 }
      let before = Int(o.expertIn[slot])
      if before >= 0 { o.slotOf[before] = -1 }
      o.expertIn[slot] = Int32(truncatingIfNeeded: next)
      o.stage[next] = .asked
      o.fetches[asked] = (next, slot)
      asked += 1
      o.fetching.ask()
    }
  }

  /// Notes what has arrived.
  private mutating func take() {
    let o = offload.pointee
    if taken == asked { return }
    for i in 0..<asked {
      let (expert, slot) = o.fetches[i]
      guard o.stage[expert] == .asked && o.fetching.isDone(i) else { continue }
      o.slotOf[expert] = Int32(truncatingIfNeeded: slot)
      o.stage[expert] = .ready
      taken += 1
    }
  }

  /// What has not arrived never will.
  mutating func end(abandon: Bool) {
    if hasHelper { offload.pointee.fetching.finish(abandon: abandon) }
    take()
    let o = offload.pointee
    for i in 0..<asked where o.stage[o.fetches[i].expert] == .asked { o.expertIn[o.fetches[i].slot] = -1 }
  }
}

// MARK: layers

extension Layer {
  /// Takes all but the experts' matrices from a checkpoint, and those, expert by expert, when they are needed. On an error
  /// nothing has changed.
  public mutating func offload(
    _ checkpoint: Checkpoint, _ layout: Layout, _ place: LayerPlace, residentLimit: ResidentLimit
  ) throws(Fault) {
    let loading = Loading(self, checkpoint, layout, place)
    try loading.check()
    let (group, allocator) = (offloadedGroup!, context.pointee.allocator)
    let staged = try Staged(loading, in: context)
    defer { staged.free(allocator) }
    try offload(group, loading, .rows, residentLimit: residentLimit)
    staged.commit()
  }

  /// The same of a layer that is being read, as a model's: its experts' matrices become panels when they come from the files. There is memory then
  /// for all else, and panels of other groups are still to be filled.
  mutating func offload(_ loading: Loading, _ sources: LayerSources, residentLimit: ResidentLimit) throws(Fault) {
    let (group, allocator) = (offloadedGroup!, context.pointee.allocator)
    var others = sources.forms
    others[group] = nil
    try parameters.allocate(withoutPacked: others, offloaded: group, configuration, allocator)
    try offload(group, loading, .read(sources), residentLimit: residentLimit)
    parameters.release(packed: others, configuration, allocator)
  }

  private mutating func offload(
    _ group: ExpertGroup, _ loading: Loading, _ form: SlotForm, residentLimit: ResidentLimit
  ) throws(Fault) {
    let (allocator, kernels) = (context.pointee.allocator, context.kernels)
    let (pointer, stored, contents) = try allocator.make {
      let pointer = $0.take(Offload.self, 1)
      let stored = StoredExperts(&$0, group, kernels, files: loading.checkpoint.fileCount)
      return (pointer, stored, Offload(&$0, .stored(stored), limit: residentLimit))
    }
    pointer.initialize(to: contents)
    pointer.pointee.initialise()
    do throws(Fault) {
      try stored.open(loading, parameters.of(group))
    } catch {
      allocator.deallocate(pointer)
      throw error
    }
    do throws(Fault) {
      try useSlots(pointer, form)
    } catch {
      pointer.free(allocator)
      throw error
    }
    offload = pointer
  }

  /// New slots of another form, in place of those there are.
  mutating func useSlots(_ offload: OffloadPointer, _ form: SlotForm) throws(Fault) {
    let c = configuration
    let (count, bytes) = try offload.pointee.layOut(c, form: form)
    let memory = try context.pointee.allocator.allocate(bytes: bytes)
    var arena = Arena(memory)
    let slots = offload.pointee.memory(&arena, c, form, count)
    if case .read = form {
      for index in 0..<c.groupCount where c.groups[index].index != offload.pointee.group {
        slots.prepared.of(c.groups[index])?.clearSamples(experts: c.groups[index].experts)
      }
    } else {
      do throws(Fault) {
        try slots.prepared.pack(.layer(parameters, frozen: false), in: context)
      } catch {
        context.pointee.allocator.deallocate(memory)
        throw error
      }
    }
    offload.pointee.use(slots)
    parameters.offloaded = slots.slots
    replacePrepared(slots.prepared, memory)
  }

  /// The same of panels: all but those of one group are mapped. `place`: where those of a matrix are. On an error nothing has changed.
  mutating func offload(
    _ panels: SlotForm.Panels, _ group: ExpertGroup, residentLimit: ResidentLimit,
    place: (PreparedWeights.Matrix) -> FilePlace?
  ) throws(Fault) {
    let allocator = context.pointee.allocator
    let (pointer, packed, contents) = try allocator.make {
      let pointer = $0.take(Offload.self, 1)
      let packed = PackedExperts(&$0, group)
      return (pointer, packed, Offload(&$0, .packed(packed), limit: residentLimit))
    }
    pointer.initialize(to: contents)
    pointer.pointee.initialise()
    do throws(Fault) {
      try packed.open(place)
    } catch {
      allocator.deallocate(pointer)
      throw error
    }
    do throws(Fault) {
      try useSlots(pointer, .panels(panels))
    } catch {
      pointer.free(allocator)
      throw error
    }
    offload = pointer
  }

  /// The one group of experts that can be offloaded; nil where there are several, or none has matrices.
  public var offloadedGroup: ExpertGroup? {
    var found: ExpertGroup?
    for index in 0..<configuration.groupCount {
      let group = configuration.groups[index]
      if group.isShared || !group.multiplies { continue }
      if found != nil { return nil }
      found = group
    }
    return found
  }

  /// Whether one of its parameters is a matrix that an offloaded layer has in files.
  func comesFromFile(_ parameter: Parameter) -> Bool {
    guard let group = offloadedGroup, let own = parameters.matrix(parameter) else { return false }
    return own.group == group.index
  }

  public var isOffloaded: Bool { offload != nil }
  public var offloadStatistics: Offload.Statistics? { offload?.pointee.statistics }
}

extension UnsafeMutablePointer where Pointee == Offload {
  func free(_ allocator: Allocator) {
    pointee.files.close(allocator)
    allocator.deallocate(self)
  }
}
