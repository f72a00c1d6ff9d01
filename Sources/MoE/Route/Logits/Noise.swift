import CShims

/// Noise on the logits, in training:  z + deviation * N(0,1), the deviation given or, learned, softplus(n) + 0.01 with
/// n = r W_n^T [Shazeer 2017]. Element (t, e) draws number t * E + e. In evaluation nothing is drawn, but losses of
/// smooth loads ask for the deviations all the same. The caller's numbers take the place of those drawn; without noise of the
/// layer's own their deviation is 1.
struct Noise {
  let c: Configuration
  let kernels: UnsafePointer<moei_kernels>
  private let random: Random?
  private let given: UnsafePointer<Float>?  // [T,E] of the whole call
  private let firstToken: Int

  static var least: Float { 0.01 }

  init?(_ c: Configuration, _ draws: Draws) {
    let isOwn = c.exploration.noise != .none && (draws.training || c.hasSmoothLoads)
    guard isOwn || draws.given.noise != nil else { return nil }
    self.c = c
    kernels = draws.kernels
    given = draws.given.noise
    random = draws.training ? draws.of(.noise) : nil
    firstToken = draws.firstToken
  }

  /// The number of token t and expert e, normal with deviation 1.
  func draw(_ t: Int, _ e: Int) -> Float {
    let number = (firstToken + t) * c.experts + e
    return given?[number] ?? random?.normal(UInt64(number)) ?? 0
  }
  private var acts: Bool { given != nil || random != nil }

  /// z [E] of one token; n [E] of the learned noise becomes the deviations.
  func add(_ t: Int, to z: UnsafeMutablePointer<Float>, learned n: UnsafeMutablePointer<Float>?) {
    for e in 0..<c.experts {
      var deviation = c.exploration.noise == .none ? 1 : c.exploration.noiseDeviation
      if let n {
        deviation = softplus(n[e]) + Self.least
        n[e] = deviation
      }
      if acts { z[e] += deviation * draw(t, e) }
    }
  }

  private func softplus(_ v: Float) -> Float {
    var (v, root) = (v, Float(0))
    kernels.pointee.sqrt_softplus(1, &v, &root)
    return root * root
  }

  // MARK: backward

  /// dn [E] from dz [E] of one token, from n, and from what losses want of the deviations.
  func backward(
    _ t: Int, dz: UnsafePointer<Float>, dDeviations: UnsafePointer<Float>?, learned n: UnsafePointer<Float>,
    into dn: UnsafeMutablePointer<Float>
  ) {
    kernels.pointee.sigmoid(Int64(c.experts), n, dn)
    for e in 0..<c.experts { dn[e] *= dz[e] * draw(t, e) + (dDeviations?[e] ?? 0) }
  }
}
