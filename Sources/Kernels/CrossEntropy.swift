// Cross-entropy of one row of logits.

/// In place of z: exp(z - max). Then sums[0] = max, sums[1] = the sum of these exponentials, sums[2] = its logarithm,
/// sums[3] = the sum of z - max. Max and logarithm stay apart, since the loss of a sure prediction is the logarithm alone.
@inline(never) func exponentialsOfRow(_ n: Int, _ z: Target, _ sums: Target) {
  var top = V(repeating: -.infinity)
  var i = 0
  while i &+ 16 <= n {
    top = larger(top, load(z + i))
    i &+= 16
  }
  var maximum = largest(top)
  while i < n {
    if z[i] > maximum { maximum = z[i] }
    i &+= 1
  }

  var (lanes, below) = (V(repeating: 0), V(repeating: 0))
  i = 0
  while i < n {
    let left = n &- i
    // Stored and loaded again: the lanes beyond the row are 0 then.
    store(z + i, left, load(z + i, left) - maximum)
    let difference = load(z + i, left)
    below += difference
    store(z + i, left, exponential(difference))
    lanes += load(z + i, left)
    i &+= 16
  }
  let total = sum(lanes)
  sums[0] = maximum
  sums[1] = total
  sums[2] = logarithm(V(repeating: total))[0]
  sums[3] = sum(below)
}
