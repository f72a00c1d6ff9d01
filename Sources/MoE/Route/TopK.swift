/// The K largest of E scores, largest first, the lowest index first among equals. Partial selection: most scores are
/// only compared with the K-th best so far.
func selectTopK(
  _ scores: UnsafePointer<Float>, count: Int, k: Int, indices: UnsafeMutablePointer<Int32>
) {
  var held = 0
  for e in 0..<count {
    let score = scores[e]
    if held == k && !(score > scores[Int(indices[k - 1])]) { continue }
    var place = held < k ? held : k - 1
    while place > 0 && score > scores[Int(indices[place - 1])] {
      indices[place] = indices[place - 1]
      place -= 1
    }
    indices[place] = Int32(truncatingIfNeeded: e)
    if held < k { held += 1 }
  }
}
