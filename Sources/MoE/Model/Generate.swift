import CShims

// Several prompts go on, each as if it were alone: they are read with their ends side by side, padded in front, and a sequence
// that has ended is padding from then on.

/// Prompts of different lengths, each of one token at least.
public struct Prompts {
  let tokens: UnsafePointer<Int32>  // [offsets[B]]
  let offsets: UnsafePointer<Int64>  // [B + 1]
  public let count: Int  // B
  public private(set) var longest = 0

  public init(tokens: UnsafePointer<Int32>, offsets: UnsafePointer<Int64>, count: Int) {
    (self.tokens, self.offsets, self.count) = (tokens, offsets, count)
    for b in 0..<count { longest = max(longest, self[b].count) }
  }

  subscript(b: Int) -> UnsafeBufferPointer<Int32> {
    UnsafeBufferPointer(start: tokens + Int(offsets[b]), count: Int(offsets[b + 1] - offsets[b]))
  }
}

/// How they go on.
public struct Generation {
  /// User, sequence, number of the token, token, logits [V]; answers a Next.
  public typealias OnToken =
    @convention(c) (UnsafeMutableRawPointer?, Int64, Int64, Int32, UnsafePointer<Float>?) -> Int32

  /// After a token. Numbers as in moe_next.
  enum Next: Int32 {
    case goOn = 0
    case endSequence = 1
    case endAll = 2
  }

  let most: Int  // new tokens of each sequence
  let sampling: Sampling
  public var history = UnsafeBufferPointer<Int32>(start: nil, count: 0)  // in front of all prompts
  public var seeds: UnsafePointer<UInt64>?  // [B]
  public var eos = UnsafeBufferPointer<Int32>(start: nil, count: 0)
  /// Tokens of the prompts that are read at once.
  public var chunk = 2048
  /// Bytes of scratch of a reading; nil = as the context has it.
  public var limit: Int?
  public var onToken: OnToken?
  public var user: UnsafeMutableRawPointer?

  public init(most: Int, sampling: Sampling) { (self.most, self.sampling) = (most, sampling) }

  /// Tokens of each prompt that are read at once.
  public func columns(of prompts: Prompts) -> Int { min(prompts.longest, max(1, chunk / prompts.count)) }

  func sampling(_ b: Int) -> Sampling {
    var own = sampling
    own.seed = seeds.map { $0[b] } ?? sampling.seed &+ UInt64(b)
    return own
  }
}

/// Where what they get goes.
public struct GeneratedTokens {
  let tokens: UnsafeMutablePointer<Int32>  // [B, most]
  let counts: UnsafeMutablePointer<Int64>  // [B]

  public init(tokens: UnsafeMutablePointer<Int32>, counts: UnsafeMutablePointer<Int64>) {
    (self.tokens, self.counts) = (tokens, counts)
  }
}

extension Model {
  /// `cache` has room for the longest prompt and what follows. On an error it is as it was, and `result` has what was drawn.
  public func generate(
    _ prompts: Prompts, _ how: Generation, cache: CachePointer, into result: GeneratedTokens
  ) throws(Fault) {
    result.tokens.update(repeating: -1, count: prompts.count * how.most)
    result.counts.update(repeating: 0, count: prompts.count)
    let before = cache.pointee.length
    let columns = how.columns(of: prompts)
    let allocator = context.pointee.allocator
    let parts = try allocator.make { GeneratingParts(&$0, prompts.count, columns, configuration.vocabulary) }
    defer { allocator.deallocate(parts.logits) }
    let run = Generating(
      model: self, prompts: prompts, how: how, cache: cache, parts: parts, columns: columns, result: result)
    do throws(Fault) {
      try run.readPrompts()
      try run.goOn()
    } catch {
      cache.truncate(before)
      throw error
    }
  }
}

/// One block of memory.
private struct GeneratingParts {
  let logits: UnsafeMutablePointer<Float>  // [B,V]
  let ids: UnsafeMutablePointer<Int32>  // [B, columns]
  let valid: UnsafeMutablePointer<UInt8>  // [B, columns]
  let isAlive: UnsafeMutablePointer<Bool>  // [B]

  init(_ arena: inout Arena, _ sequences: Int, _ columns: Int, _ vocabulary: Int) {
    logits = arena.take(Float.self, sequences, vocabulary)
    ids = arena.take(Int32.self, sequences, columns)
    valid = arena.take(UInt8.self, sequences, columns)
    isAlive = arena.take(Bool.self, sequences)
  }
}

private struct Generating {
  let model: Model
  let prompts: Prompts
  let how: Generation
  let cache: CachePointer
  let parts: GeneratingParts
  let columns: Int  // of the prompts that are read at once at most
  let result: GeneratedTokens

  private var vocabulary: Int { model.configuration.vocabulary }

  /// Chunk by chunk; all prompts end with the last one, so that its logits are all prompts'.
  func readPrompts() throws(Fault) {
    var (first, width) = (0, columns)
    while first < prompts.longest {
      width = min(width, prompts.longest - first)
      while width > 1 && !fits(width) { width = (width + 1) / 2 }
      for b in 0..<prompts.count {
        let prompt = prompts[b]
        let padding = prompts.longest - prompt.count
        for i in 0..<width {
          let place = first + i - padding
          put(place < 0 ? nil : prompt[place], at: b * width + i)
        }
      }
      first += width
      try read(width, isLast: first == prompts.longest)
    }
  }

  /// Draws, and reads what was drawn, until all sequences have ended.
  func goOn() throws(Fault) {
    parts.isAlive.initialize(repeating: true, count: prompts.count)
    for number in 0..<how.most {
      var alive = 0
      for b in 0..<prompts.count where parts.isAlive[b] {
        switch try draw(number, b) {
        case .goOn: alive += 1
        case .endSequence: parts.isAlive[b] = false
        case .endAll: return
        }
      }
      if alive == 0 || number + 1 == how.most { return }
      for b in 0..<prompts.count { put(parts.isAlive[b] ? result.tokens[b * how.most + number] : nil, at: b) }
      try read(1, isLast: true)
    }
  }

  private func draw(_ number: Int, _ b: Int) throws(Fault) -> Generation.Next {
    let (own, logits) = (result.tokens + b * how.most, parts.logits + b * vocabulary)
    let history = TokenHistory(how.history, prompts[b], UnsafeBufferPointer(start: own, count: number))
    let token: Int32
    do throws(Fault) {
      token = try how.sampling(b).token(logits, vocabulary, draw: UInt64(number), after: history, in: model.context)
    } catch {
      throw error.inSequence(b)
    }
    own[number] = token
    result.counts[b] = Int64(number + 1)
    let answer =
      how.onToken.map { $0(how.user, Int64(b), Int64(number), token, logits) } ?? Generation.Next.goOn.rawValue
    let next = Generation.Next(rawValue: answer) ?? .endAll
    return next == .goOn && how.eos.contains(token) ? .endSequence : next
  }

  // MARK: reading

  /// nil: padding.
  private func put(_ token: Int32?, at place: Int) {
    (parts.ids + place).initialize(to: token ?? 0)
    (parts.valid + place).initialize(to: token == nil ? 0 : 1)
  }

  private func input(_ width: Int) -> ModelInput {
    var input = ModelInput(sequences: prompts.count, length: width)
    input.ids = UnsafePointer(parts.ids)
    input.validMask = UnsafePointer(parts.valid)
    input.limit = how.limit
    return input
  }

  private func fits(_ width: Int) -> Bool {
    if model.ranks != nil { return true }  // who read the same together; what does not fit the call tells all of them
    do throws(Fault) {
      try model.requireRoom(cache, input(width))
      return true
    } catch {
      return false
    }
  }

  /// `isLast`: logits are wanted.
  private func read(_ width: Int, isLast: Bool) throws(Fault) {
    var input = input(width)
    var isPadded = false
    for t in 0..<input.tokens where parts.valid[t] == 0 { isPadded = true }
    if !isPadded { input.validMask = nil }
    try model.read(cache, input, logits: isLast ? parts.logits : nil)
  }
}
