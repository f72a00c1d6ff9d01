import CShims

/// Random numbers by counter: number `index` of `stream` at `step` is a function of (seed, step, stream, index) and
/// nothing else, so any thread can draw any of them, again and again. Philox4x32-10 [Salmon et al., SC'11].
struct Random {
  let kernels: UnsafePointer<moei_kernels>
  let seed: UInt64
  let stream: UInt8
  let step: UInt64  // below 2^56

  /// As kernels know them.
  var numbers: moei_random {
    let word3 = (step >> 32) << 8 | UInt64(stream)
    return moei_random(key: seed, upper: word3 << 32 | step & 0xFFFF_FFFF)
  }

  /// values[i] = 0 where its word, one of four for each index from `first` on, is below `threshold`, else scaled.
  func drop(_ values: UnsafeMutablePointer<Float>, count: Int, first: UInt64, threshold: UInt32, scale: Float) {
    kernels.pointee.dropout(Int64(count), numbers, first, threshold, scale, values)
  }

  /// values[i] = number `from` + i, uniform in (-bound, bound), symmetric: the middles of 2^23 equal steps.
  func fillUniform(_ values: UnsafeMutablePointer<Float>, from: Int, count: Int, bound: Float) {
    let head = min(-from & 3, count)  // what is left of the first counter
    if head > 0 {
      withUnsafeTemporaryAllocation(of: Float.self, capacity: 4) { four in
        kernels.pointee.uniform(4, numbers, UInt64(from / 4), bound, four.baseAddress!)
        values.update(from: four.baseAddress! + from % 4, count: head)
      }
    }
    kernels.pointee.uniform(Int64(count - head), numbers, UInt64((from + head) / 4), bound, values + head)
  }

  /// values[i] = number `from` + i, normal with mean 0, the tries in place of the step: for initial values, which have
  /// none.
  func fillNormal(_ values: UnsafeMutablePointer<Float>, from: Int, count: Int, deviation: Double) {
    for i in 0..<count {
      values[i] = Float(
        Self.normal { attempt in
          Random(kernels: kernels, seed: seed, stream: stream, step: attempt).twoWords(UInt64(from + i))
        } * deviation)
    }
  }

  /// Number `index`, below 2^32, normal with mean 0 and deviation 1; tries count in the upper half of the index.
  func normal(_ index: UInt64) -> Float { Float(Self.normal { attempt in twoWords(index | attempt << 32) }) }

  /// Marsaglia's polar method: a point in the unit disc, tried until one falls inside.
  private static func normal(_ words: (UInt64) -> (UInt32, UInt32)) -> Double {
    func coordinate(_ word: UInt32) -> Double { (Double(word) + 0.5) * 0x1p-31 - 1 }
    var attempt: UInt64 = 0
    while true {
      let w = words(attempt)
      let (u, v) = (coordinate(w.0), coordinate(w.1))
      let s = u * u + v * v
      if s < 1 { return u * (-2 * naturalLogarithm(s) / s).squareRoot() }
      attempt += 1
    }
  }

  /// Uniform in [0, 1), a multiple of 2^-53: counter `index`, of any size, has one.
  func uniform(_ index: UInt64) -> Double {
    let (low, high) = twoWords(index)
    return Double((UInt64(high) << 32 | UInt64(low)) >> 11) * 0x1p-53
  }

  /// Word `index`, one of four from each counter.
  func word(_ index: UInt64) -> UInt32 {
    var words: (UInt32, UInt32, UInt32, UInt32) = (0, 0, 0, 0)
    return withUnsafeMutableBytes(of: &words) {
      let first = $0.baseAddress!.assumingMemoryBound(to: UInt32.self)
      kernels.pointee.random_words(4, numbers, index / 4, first)
      return first[Int(index % 4)]
    }
  }

  /// The first two words of one index.
  private func twoWords(_ index: UInt64) -> (UInt32, UInt32) {
    var words: (UInt32, UInt32) = (0, 0)
    withUnsafeMutableBytes(of: &words) {
      kernels.pointee.random_words(2, numbers, index, $0.baseAddress!.assumingMemoryBound(to: UInt32.self))
    }
    return words
  }
}

/// Numbers of the caller's in place of drawn ones, of all tokens of a call.
public struct GivenNumbers {
  public var noise: UnsafePointer<Float>?  // [T,E] normal
  public var jitter: UnsafePointer<Float>?  // [T,H] from -1 to 1
  public var second: UnsafePointer<Float>?  // [T] from 0 to 1

  public init() {}

  /// The same numbers of tokens and features, for tokens that are called `first` and so on.
  func counted(from first: Int, _ c: Configuration) -> GivenNumbers {
    var own = self
    own.noise = noise.map { $0 - first * c.experts }
    own.jitter = jitter.map { $0 - first * c.hidden }
    return own
  }
}

/// The random numbers of one call, by what they are for.
struct Draws {
  let kernels: UnsafePointer<moei_kernels>
  let seed: UInt64
  let step: UInt64
  let training: Bool
  var given = GivenNumbers()
  /// What the first token is called: chunks of a call go on counting, and so do ranks.
  var firstToken = 0

  /// Behind the streams of the first parameters.
  enum Stream: UInt8 {
    case expertDropout = 16
    case jitter = 17
    case routerDropout = 18
    case noise = 19
    case secondChoice = 20
    case dropOrder = 21
    case hashTable = 22
    case attentionDropout = 23
    case sampling = 24
    case moments = 25
    case weights = 26
  }

  /// Groups count elements by their own widths, so each has numbers of its own.
  func ofDropout(inGroup index: Int) -> Random {
    let stream = index == 0 ? Stream.expertDropout.rawValue : 152 + UInt8(index)
    return Random(kernels: kernels, seed: seed, stream: stream, step: step)
  }

  func of(_ stream: Stream) -> Random { Random(kernels: kernels, seed: seed, stream: stream.rawValue, step: step) }
}

/// ln x for normal x > 0 with IEEE operations alone, so that initial parameters do not depend on a libm:
/// x = m 2^n, ln m = 2 atanh((m - 1) / (m + 1)).
func naturalLogarithm(_ x: Double) -> Double {
  let m = x.significand
  let t = (m - 1) / (m + 1)  // below 1/3
  let square = t * t
  var sum = 0.0
  var odd = 37.0
  while odd >= 1 {
    sum = sum * square + 1 / odd
    odd -= 2
  }
  return 2 * t * sum + Double(x.exponent) * 0.693147180559945309
}
