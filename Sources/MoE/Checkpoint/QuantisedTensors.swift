/// A folder's tensors, where those that hold the weights of one linear map together stand as one: NAME.weight.
struct QuantisedTensors {
  let tensors: UnsafeMutablePointer<StoredTensor>  // [count], sorted by name; in one block with what it points at
  let count: Int

  /// nil where no weights are quantised.
  init?(_ checkpoint: Checkpoint, _ hints: QuantisationHints, _ allocator: Allocator) throws(Fault) {
    var (matrices, others, text) = (0, 0, 0)
    for index in 0..<checkpoint.count {
      let tensor = checkpoint[index]
      if let weight = QuantisedWeight(tensor, in: checkpoint) {
        matrices += 1
        text += weight.length + 8
      } else if !checkpoint.isBesideWeights(tensor.name) {
        others += 1
      }
    }
    if matrices == 0 { return nil }
    let count = matrices + others
    let (list, own, texts) = try allocator.make {
      ($0.take(StoredTensor.self, count), $0.take(QuantisedMatrix.self, matrices), $0.take(CChar.self, text))
    }
    do throws(Fault) {
      try Self.fill(list, own, texts, checkpoint, hints)
      heapSort(
        count, isLess: { compareText(list[$0].name, list[$1].name) < 0 }, exchange: { swapAt(list, $0, $1) })
      for i in 1..<count where compareText(list[i - 1].name, list[i].name) == 0 {
        throw .invalid("\(list[i].name): the files have these weights twice, quantised and not, or in two ways")
      }
    } catch {
      allocator.deallocate(list)
      throw error
    }
    (tensors, self.count) = (list, count)
  }

  private static func fill(
    _ list: UnsafeMutablePointer<StoredTensor>, _ matrices: UnsafeMutablePointer<QuantisedMatrix>,
    _ texts: UnsafeMutablePointer<CChar>, _ checkpoint: Checkpoint, _ hints: QuantisationHints
  ) throws(Fault) {
    var (next, matrix, free) = (list, matrices, texts)
    for index in 0..<checkpoint.count {
      let tensor = checkpoint[index]
      guard let weight = QuantisedWeight(tensor, in: checkpoint) else {
        if checkpoint.isBesideWeights(tensor.name) { continue }
        next.initialize(to: tensor)
        next += 1
        continue
      }
      let found = try weight.matrix(hints)
      matrix.initialize(to: found)
      var name = TextBuffer(free, capacity: weight.length + 8)
      name.append(tensor.name, count: weight.length)
      name.append(".weight")
      next.initialize(
        to: StoredTensor(
          name: UnsafePointer(free), type: tensor.type, typeName: tensor.typeName,
          shape: StoredShape(found.rows, found.columns), file: tensor.file, offset: tensor.offset, bytes: found.bytes,
          quantised: UnsafePointer(matrix)))
      free += weight.length + 8
      next += 1
      matrix += 1
    }
  }
}

/// What config.json says about quantised weights beside what their tensors tell.
public struct QuantisationHints {
  /// Columns that share a scale.
  var group: Int?
  var block: (rows: Int, columns: Int)?
  /// Of GPTQ: zero points are written minus 1, but in its second version.
  var zeroShift = 1

  /// Of quantization_config, where there is one.
  init(_ value: JSONValue?) {
    guard let value else { return }
    group = Self.size(value.member("group_size"))
    // Of compressed-tensors, where all parts are quantised alike.
    if let groups = value.member("config_groups"), groups.count == 1 {
      groups.forEach { group = Self.size($0.member("weights")?.member("group_size")) }
    }
    if let format = value.member("checkpoint_format"), format.text == "gptq_v2" { zeroShift = 0 }
    guard let sizes = value.member("weight_block_size"), sizes.kind == .array, sizes.count == 2 else { return }
    var both = (Int?.none, Int?.none)
    sizes.forEach { both = (both.1, Self.size($0)) }
    if let rows = both.0, let columns = both.1 { block = (rows, columns) }
  }

  private static func size(_ value: JSONValue?) -> Int? {
    guard let number = value?.number, number >= 1, number <= 0x1p31 else { return nil }
    return Int(number)
  }
}
