import CShims

// Errors of weights before made up for by those that come [Frantar et al. 2022, GPTQ, arXiv:2210.17323], a block at a time. With d = w - q
// and the factor R an error costs |d R|^2; given the errors of the blocks before, those of a block would cost nothing with
//     d_k = - (sum over i < k of d_i R_ik) / R_kk
// and so w - d is encoded in place of w.

extension WeightedEncoding {
  /// What is read becomes what makes up for the errors so far.
  func makeUp(_ p: Int, _ count: Int) {
    guard let factor = scratch.factor else { return }
    scratch.own.update(from: scratch.turned, count: count * chunkWidth)
    for first in stride(from: 0, to: count, by: chunkWidth) {
      makeUp(factor, p, first, min(chunkWidth, count - first))
    }
    for i in 0..<count {
      for row in 0..<rows { scratch.rows[row * code.inputs + i] = scratch.turned[i * chunkWidth + row] }
    }
  }

  /// At most 32 inputs, after those of the block that come before them: of these it is what would be best.
  private func makeUp(_ factor: UnsafePointer<Float>, _ p: Int, _ first: Int, _ count: Int) {
    let (start, sums) = (p + first, scratch.decoded)  // [count,32]
    sums.update(repeating: 0, count: count * chunkWidth)
    if start > 0 {
      kernels.pointee.pack(Int64(count), Int64(start), factor + start, Int64(depth), scratch.column)
      kernels.pointee.product_over_tokens(
        Int64(count), Int64(chunkWidth), moei_tiles(count: 1, tall: 1, height: Int32(start)), scratch.column, 0, 0,
        scratch.deviations, 0, 0, sums, Int64(chunkWidth), sums, nil, 0)
    }
    for k in 0..<count {
      let own = sums + k * chunkWidth
      for j in 0..<k {
        let (share, other) = (factor[(start + j) * depth + start + k], scratch.deviations + (start + j) * chunkWidth)
        for row in 0..<chunkWidth { own[row] += share * other[row] }
      }
      let pivot = factor[(start + k) * depth + start + k]
      let (deviation, turned) = (
        scratch.deviations + (start + k) * chunkWidth, scratch.turned + (first + k) * chunkWidth
      )
      for row in 0..<chunkWidth {
        deviation[row] = -own[row] / pivot
        turned[row] -= deviation[row]
      }
    }
  }

  /// What the block has become.
  func noteErrors(_ p: Int, _ count: Int, of block: UnsafeRawPointer) {
    if scratch.factor == nil { return }
    decode(block, count)
    for i in 0..<count * chunkWidth { scratch.deviations[p * chunkWidth + i] = scratch.own[i] - scratch.decoded[i] }
  }
}
