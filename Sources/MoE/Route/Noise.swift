import CShims

/// Noise on the logits, in training:  z + deviation * N(0,1), the deviation given or, learned, softplus(n) + 0.01 with
/// n = r W_n^T [Shazeer 2017]. Element (t, e) draws number t * E + e.
struct Noise {
  let c: Configuration
  let kernels: UnsafePointer<moei_kernels>
  let random: Random

  static var least: Float { 0.01 }

  init?(_ c: Configuration, _ draws: Draws) {
    guard draws.training && c.exploration.noise != .none else { return nil }
    self.c = c
    kernels = draws.kernels
    random = draws.of(.noise)
  }

  /// z [E] of one token; n [E] of the learned noise becomes the deviations.
  func add(_ t: Int, to z: UnsafeMutablePointer<Float>, learned n: UnsafeMutablePointer<Float>?) {
    for e in 0..<c.experts {
      var deviation = c.exploration.noiseDeviation
      if let n {
        deviation = softplus(n[e]) + Self.least
        n[e] = deviation
      }
      z[e] += deviation * random.normal(UInt64(t * c.experts + e))
    }
  }

  private func softplus(_ v: Float) -> Float {
    var (v, root) = (v, Float(0))
    kernels.pointee.sqrt_softplus(1, &v, &root)
    return root * root
  }

  // MARK: backward

  /// dn [E] from dz [E] of one token, and from n.
  func backward(
    _ t: Int, dz: UnsafePointer<Float>, learned n: UnsafePointer<Float>, into dn: UnsafeMutablePointer<Float>
  ) {
    kernels.pointee.sigmoid(Int64(c.experts), n, dn)
    for e in 0..<c.experts { dn[e] *= dz[e] * random.normal(UInt64(t * c.experts + e)) }
  }
}
