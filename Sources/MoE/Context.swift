import CShims

/// What layers and optimisers share: threads, memory, callbacks, and the kernels for this processor.
/// Counted: it lives until the last handle made in it is freed, so that hosts may free in any order.
public struct Context {
  public let allocator: Allocator
  fileprivate(set) var cancel: UnsafePointer<Cancel>?  // nil: nobody is asked
  let log: Log
  fileprivate let kernels: UnsafeMutablePointer<moei_kernels>
  fileprivate let backend: Matmul.Backend
  fileprivate let pool: UnsafeMutablePointer<Pool>
  fileprivate let scratch: ScratchCache
  fileprivate let references: SharedWord
  fileprivate let layersMade: SharedCounter
  fileprivate let profile: Profile
  public let info: UnsafeMutablePointer<CChar>
  fileprivate let memoryLimit: Int?

  /// More threads than processors take memory and time and give nothing, but a host may come to be allowed more processors.
  fileprivate static var mostThreadsPerProcessor: Int { 4 }

  public struct Configuration {
    /// nil = as many as the process may use.
    public var threads: Int? = 1
    public var matmul = MatmulChoice.fastest
    public var instructions = Instructions.all
    public var allocator = Allocator()
    public var cancel = Cancel()
    public var log = Log()
    /// Bytes of scratch and tape of a call; nil = none.
    public var memoryLimit: Int?
    /// nil = threads of its own.
    public var hostThreads: HostThreads?

    public init() {}
  }

  /// Numbers as in moe_instructions.
  public enum Instructions: Int32 {
    case all = 0
    case base = 1
    case avx2 = 2
    case avx512 = 3
    case avx512BF16 = 4
  }

  /// Numbers as in moe_matmul.
  public enum MatmulChoice: Int32 {
    case fastest = 0  // AUTO
    case openBLAS = 1
    case reference = 2
    case native = 3
  }
}

public typealias ContextPointer = UnsafeMutablePointer<Context>

extension UnsafeMutablePointer where Pointee == Context {
  // MARK: life

  public static func create(_ configuration: Context.Configuration) throws(Fault) -> ContextPointer {
    let allocator = configuration.allocator
    let parts = try allocator.make { ContextParts(&$0) }
    let counted = allocator.counting(in: parts.memoryCounts)
    let (context, kernels, info) = (parts.context, parts.kernels, parts.info)
    Self.fill(kernels, atMost: configuration.instructions)
    let backend: Matmul.Backend
    do throws(Fault) {
      backend = try Self.backend(configuration.matmul, hasTiles: kernels.pointee.has_tiles != 0)
    } catch {
      allocator.deallocate(context)
      throw error
    }
    parts.cancel.initialize(to: configuration.cancel)
    context.initialize(
      to: Context(
        allocator: counted, cancel: parts.cancel, log: configuration.log, kernels: kernels,
        backend: backend, pool: parts.pool, scratch: parts.scratch, references: parts.references,
        layersMade: parts.layersMade, profile: parts.profile, info: info, memoryLimit: configuration.memoryLimit))
    parts.pool.initialize(to: parts.words)
    parts.scratch.initialise()
    parts.references.set(1)
    parts.layersMade.set(0)
    parts.profile.initialise()
    let processors = Library.processors
    let asked = configuration.threads ?? processors
    do throws(Fault) {
      let most = processors * Context.mostThreadsPerProcessor
      try Pool.start(
        parts.pool, threads: min(asked, most), host: configuration.hostThreads, allocator: allocator)
    } catch {
      allocator.deallocate(context)
      throw error
    }
    context.describe(asked: asked, processors: processors)
    configuration.log.write(info)
    return context
  }

  public func retain() { _ = pointee.references.add(1) }

  public func release() {
    guard pointee.references.add(-1) == 0 else { return }
    pointee.scratch.free(allocator: pointee.allocator)
    pointee.profile.free(allocator: pointee.allocator)
    let allocator = pointee.allocator.uncounted
    pointee.pool.pointee.finish(allocator: allocator)
    allocator.deallocate(self)
  }

  /// Who computes the products, found and able to. Without fused multiply-add and without OpenBLAS the plain loops do: slowly,
  /// but a host need not install anything.
  private static func backend(
    _ choice: Context.MatmulChoice, hasTiles: Bool
  ) throws(Fault) -> Matmul.Backend {
    switch choice {
    case .fastest:
      if hasTiles { return .native }
      do throws(Fault) {
        try OpenBLAS.load()
        return .openBLAS
      } catch {
        return .reference
      }
    case .openBLAS:
      try OpenBLAS.load()
      return .openBLAS
    case .reference: return .reference
    case .native:
      if hasTiles { return .native }
      throw .invalid("matmul = MOE_MATMUL_NATIVE needs fused multiply-add, which the instructions here do not have")
    }
  }

  private static func fill(_ kernels: UnsafeMutablePointer<moei_kernels>, atMost wanted: Context.Instructions) {
    #if arch(x86_64)
      let level = moei_processor_level()
      switch wanted == .all ? level : min(level, wanted.rawValue) {
      case 4: moei_kernels_avx512_bf16(kernels)
      case 3: moei_kernels_avx512(kernels)
      case 2: moei_kernels_avx2(kernels)
      default: moei_kernels_base(kernels)
      }
    #else
      moei_kernels_base(kernels)
    #endif
  }

  fileprivate static var infoCapacity: Int { 768 }

  private func describe(asked: Int, processors: Int) {
    var text = TextBuffer(pointee.info, capacity: Self.infoCapacity)
    text.append(Library.description)
    text.append("; kernels: ")
    text.append(pointee.kernels.pointee.name)
    text.append("; matrix products: ")
    switch pointee.backend {
    case .openBLAS: OpenBLAS.describe(&text)
    case .reference: text.append("reference")
    case .native: text.append("libmoe")
    }
    text.append("; threads: ")
    text.append(threads)
    if pointee.pool.pointee.isHosts { text.append(" of the host") }
    if asked == threads && asked <= processors { return }
    text.append(" of ")
    text.append(asked)
    text.append(" asked for, on ")
    text.append(processors)
    text.append(" processors")
  }

  /// Threads that a call may use, the caller's included.
  public var threads: Int { pointee.pool.pointee.threadCount }

  // MARK: what a call borrows

  var kernels: UnsafePointer<moei_kernels> { UnsafePointer(pointee.kernels) }
  var matmul: Matmul { Matmul(backend: pointee.backend, kernels: kernels) }

  var profile: Profile { pointee.profile }

  var memoryLimit: Int? { pointee.memoryLimit }

  /// Bytes that the context's handles hold now, and have held at most.
  public func memoryInUse() -> (current: Int, peak: Int) { pointee.allocator.inUse }

  /// Whether matrix products want their weights packed.
  var packsWeights: Bool { pointee.backend == .native }

  /// Threads a job of this context runs on at most: so many pieces of scratch a stage needs.
  var lanes: Int { pointee.pool.pointee.threadCount }
  /// Tokens that are routed at once: a block for each thread.
  var waveTokens: Int { lanes * rowsPerBlock }

  /// A number no other layer of this context has, by which a tape knows its layer.
  func numberForLayer() -> Int64 { pointee.layersMade.next() + 1 }

  /// Runs `body` with scratch memory of at least `bytes` bytes and OpenBLAS set to one thread per calling thread.
  public func withScratch(
    _ bytes: Int, _ lent: CallerMemory? = nil, _ body: (UnsafeMutableRawPointer) throws(Fault) -> Void
  ) throws(Fault) {
    if let lent {
      if lent.bytes < bytes { throw .invalid("scratch_size = \(lent.bytes), but the call needs \(bytes) bytes") }
      return try withBLAS { () throws(Fault) in try body(lent.memory) }
    }
    let scratch = try pointee.scratch.take(bytes, from: pointee.allocator)
    defer { pointee.scratch.put(scratch, allocator: pointee.allocator) }
    try withBLAS { () throws(Fault) in try body(scratch.memory) }
  }

  /// Runs `body` with what `layout` cuts out of scratch memory, or of the caller's.
  @inline(never) func withScratch<Parts>(
    lent: CallerMemory? = nil, _ layout: (inout Arena) -> Parts, _ body: (Parts) throws(Fault) -> Void
  ) throws(Fault) {
    try withScratch(try Arena.bytes(of: layout), lent) { (memory) throws(Fault) in
      var arena = Arena(memory)
      try body(layout(&arena))
    }
  }

  private func withBLAS(_ body: () throws(Fault) -> Void) throws(Fault) {
    let blas = pointee.backend == .openBLAS
    if blas { try OpenBLAS.enter(lanes: lanes) }
    defer { if blas { OpenBLAS.leave(lanes: lanes) } }
    try body()
  }

  /// A copy of the context in other memory, in which nobody is asked whether to go on: for stages that must not stop half-way.
  func uncancelled(in memory: ContextPointer) -> ContextPointer {
    memory.initialize(to: pointee)
    memory.pointee.cancel = nil
    return memory
  }

  /// A copy of the context in other memory, whose jobs move exchanges on.
  func moving(_ exchanges: ExchangesPointer, in memory: MovingContext) -> ContextPointer {
    memory.cancel.initialize(to: pointee.cancel?.pointee ?? Cancel())
    memory.cancel.pointee.exchanges = exchanges
    memory.context.initialize(to: pointee)
    memory.context.pointee.cancel = UnsafePointer(memory.cancel)
    return memory.context
  }

  /// Shares out items 0 ..< count of `job` over the context's threads.
  func run<J: Job>(_ count: Int, _ job: J) throws(Fault) {
    var job = job
    switch pointee.pool.pointee.run(count, &job, cancel: pointee.cancel) {
    case .done: break
    case .cancelled: throw .cancelled
    case .forked: throw .forkedWithin
    }
  }

  /// Shares out a job as `run` does, but without asking the cancel callback: for work that must not stop half-way.
  func runToTheEnd<J: Job>(_ count: Int, _ job: J) {
    var job = job
    _ = pointee.pool.pointee.run(count, &job, cancel: nil)
  }

  /// Shares out items that may fail, all of them; throws what one threw.
  func runToTheEnd<J: FallibleJob>(_ count: Int, _ job: J) throws(Fault) {
    var failed: Int32 = -1
    try withUnsafeMutablePointer(to: &failed) { (failed) throws(Fault) in
      var attempts = Attempts(job: job, failed: failed)
      if case .forked = pointee.pool.pointee.run(count, &attempts, cancel: nil) { throw .forkedWithin }
    }
    // The words of an error are its thread's: what failed is tried again in this one.
    if failed >= 0 { try job.run(Int(failed), lane: 0) }
  }

  /// Asks the cancel callback, where the calling thread waits for something else than a job.
  func askWhetherToStop() throws(Fault) {
    if let cancel = pointee.cancel?.pointee, let callback = cancel.callback, callback(cancel.user) != 0 {
      throw .cancelled
    }
  }
}

/// Memory for a context whose jobs move exchanges on.
struct MovingContext {
  fileprivate let context: ContextPointer
  fileprivate let cancel: UnsafeMutablePointer<Cancel>

  init(_ arena: inout Arena) {
    context = arena.take(Context.self, 1)
    cancel = arena.take(Cancel.self, 1)
  }
}

/// One block of memory: the context, then what it points at.
private struct ContextParts {
  let context: ContextPointer
  let cancel: UnsafeMutablePointer<Cancel>
  let kernels: UnsafeMutablePointer<moei_kernels>
  let info: UnsafeMutablePointer<CChar>
  let pool: UnsafeMutablePointer<Pool>
  let words: Pool
  let scratch: ScratchCache
  let references: SharedWord
  let layersMade: SharedCounter
  let profile: Profile
  let memoryCounts: UnsafeMutablePointer<Int64>  // current, peak

  init(_ arena: inout Arena) {
    context = arena.take(Context.self, 1)
    cancel = arena.take(Cancel.self, 1)
    kernels = arena.take(moei_kernels.self, 1)
    info = arena.take(CChar.self, ContextPointer.infoCapacity)
    pool = arena.take(Pool.self, 1)
    words = Pool(&arena)
    scratch = ScratchCache(&arena)
    references = SharedWord(&arena)
    layersMade = SharedCounter(&arena)
    profile = Profile(&arena)
    memoryCounts = arena.take(Int64.self, 2)
  }
}

/// Where the library says what it decided.
public struct Log {
  public typealias Callback = @convention(c) (UnsafeMutableRawPointer?, Int32, UnsafePointer<CChar>?) -> Void

  private let callback: Callback?
  private let user: UnsafeMutableRawPointer?

  public init(_ callback: Callback? = nil, user: UnsafeMutableRawPointer? = nil) {
    self.callback = callback
    self.user = user
  }

  func write(_ line: UnsafePointer<CChar>) { callback?(user, 0, line) }
}

/// What this library is, whatever the context.
public enum Library {
  public static var version: StaticString { "0.2.0" }

  /// That this process may use.
  public static var processors: Int { Int(moei_available_processors()) }

  #if hasFeature(Embedded)
    public static var description: StaticString { "libmoe 0.2.0; Embedded Swift" }
  #else
    public static var description: StaticString { "libmoe 0.2.0; Swift" }
  #endif
}
