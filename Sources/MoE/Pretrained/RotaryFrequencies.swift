/// Frequencies of rotary positions, stretched for contexts longer than those of pretraining: the formulas are those of the papers, as
/// transformers' modeling_rope_utils has them. Radians per position, for R numbers of a head, R/2 of them.
public struct RotaryStretch {
  public enum Kind: UInt8 {
    case plain, linear, llama3, yarn, longrope
  }

  public var kind = Kind.plain
  public var theta: Double
  public var factor = 1.0
  public var originalLength = 0.0
  /// YaRN.
  public var betaFast = 32.0
  public var betaSlow = 1.0
  public var truncates = true
  /// Llama 3.
  public var lowFactor = 1.0
  public var highFactor = 4.0

  public init(theta: Double) { self.theta = theta }

  /// `rotated`: R, or one less, where a part of a head is odd: exponents are those of that number. `divisors`: of LongRoPE, else
  /// unused.
  public func fill(_ frequencies: UnsafeMutablePointer<Double>, rotated: Int, divisors: (Int) -> Double) {
    for i in 0..<(rotated + 1) / 2 {
      let own = exponential(-naturalLogarithm(theta) * Double(2 * i) / Double(rotated))
      switch kind {
      case .plain: frequencies[i] = own
      case .linear: frequencies[i] = own / factor
      case .llama3: frequencies[i] = llama3(own)
      case .yarn: frequencies[i] = yarn(own, i, rotated)
      case .longrope: frequencies[i] = own / divisors(i)
      }
    }
  }

  /// Long waves are stretched, short ones are not, and between them goes from one to the other [Llama 3 2024, arXiv:2407.21783].
  private func llama3(_ own: Double) -> Double {
    let wave = 2 * Double.pi / own
    if wave < originalLength / highFactor { return own }
    if wave > originalLength / lowFactor { return own / factor }
    let smooth = (originalLength / wave - lowFactor) / (highFactor - lowFactor)
    return (1 - smooth) * own / factor + smooth * own
  }

  /// The same by the number of turns in the original length [YaRN 2023].
  private func yarn(_ own: Double, _ i: Int, _ rotated: Int) -> Double {
    func place(_ turns: Double) -> Double {
      Double(rotated) * naturalLogarithm(originalLength / (turns * 2 * Double.pi)) / (2 * naturalLogarithm(theta))
    }
    var (low, high) = (place(betaFast), place(betaSlow))
    if truncates { (low, high) = (low.rounded(.down), high.rounded(.up)) }
    (low, high) = (max(low, 0), min(high, Double(rotated - 1)))
    if low == high { high += 0.001 }
    let ramp = min(1, max(0, (Double(i) - low) / (high - low)))
    return own / factor * ramp + own * (1 - ramp)
  }

  /// 0.1 m ln(s) + 1 [YaRN 2023]
  public static func yarnScale(_ factor: Double, _ m: Double = 1) -> Double {
    factor <= 1 ? 1 : 0.1 * m * naturalLogarithm(factor) + 1
  }

  /// sqrt(1 + ln(s) / ln(L)) [LongRoPE 2024]
  public static func longScale(_ factor: Double, _ originalLength: Double) -> Double {
    factor <= 1 ? 1 : (1 + naturalLogarithm(factor) / naturalLogarithm(originalLength)).squareRoot()
  }
}

extension RotaryStretch {
  /// a^b for a above 0, of a moderate size.
  public static func power(_ a: Double, _ b: Double) -> Double {
    let logarithm = b * naturalLogarithm(a)
    return logarithm > 700 ? .infinity : logarithm < 0 ? exponential(max(-700, logarithm)) : 1 / exponential(-logarithm)
  }
}
