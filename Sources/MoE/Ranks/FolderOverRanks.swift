// A model's folder over ranks: each reads its own experts, and all else. Rank 0 writes one, and gets the tensors of experts from their
// owners (SpreadTensor.swift).

extension Layer {
  /// Refuses a rank that has no expert of a group whose matrices stand in files: it would have no parameters to read them to.
  func requireOwnExperts() throws(Fault) {
    guard let ranks else { return }
    try requireWholeExperts()
    for index in 0..<configuration.groupCount {
      let group = configuration.groups[index]
      if group.isShared || !group.multiplies || group.experts > 0 { continue }
      let all = ranks.pointee.placement.whole(group).experts
      throw .invalid(
        "of the layer's \(all) experts none is here, but a model's folder wants one of each layer on every rank: start fewer ranks, or give experts_per_rank"
      )
    }
  }
}

extension Model {
  /// Of a parameter of experts that are spread: how many all ranks have in it, and the number of the first that is here.
  func spreadExperts(_ index: Int) -> (all: Int, first: Int)? {
    guard case .feedForward(let n, let own) = list[index], let layer = feedForwards[n]?.pointee else { return nil }
    return layer.spreadExperts(of: layer.parameter(own))
  }

  /// Of the values of all that every rank has whole.
  fileprivate var hashOfWhole: UInt64 {
    var hash = Hash()
    for index in 0..<parameterCount where spreadExperts(index) == nil {
      let parameter = parameter(index)
      if let data = parameter.data { hash.addWords(data, bytes: parameter.bytes) }
      if let panels = packed(index) { hash.addWords(panels.panels, bytes: panels.bytes) }
    }
    return hash.value
  }
}

extension UnsafeMutablePointer where Pointee == Ranks {
  /// All read a folder into such a model. `options`: what they have to have alike beside its configuration.
  public func read(
    _ model: ModelPointer, options: Hash, _ read: () throws(Fault) -> Void
  ) throws(Fault) {
    for n in 0..<model.pointee.configuration.layers { try model.pointee.layer(n)?.pointee.requireOwnExperts() }
    var kind = options
    kind.add(ModelCall.load.rawValue)
    kind.add(model.pointee.ranks?.pointee.configurationHash ?? 0)
    try pointee.open(Ranks.AllTokens(), kind: kind)
    pointee.expect(1)
    try read()
    pointee.words[0] = Int64(bitPattern: model.pointee.hashOfWhole)
    try pointee.agree(1, nil, next: nil)
    for other in 1..<max(pointee.size, 1) where pointee.words(of: other, 1)[0] != pointee.words(of: 0, 1)[0] {
      throw .invalid(
        "rank \(other) has read other weights than rank 0: the folder has to be the same on all ranks; copy it anew")
    }
  }

  /// All write the same tensors.
  func open<T: OutgoingTensors>(saving tensors: T, _ shardBytes: Int?) throws(Fault) {
    var kind = Hash()
    kind.add(ModelCall.save.rawValue)
    kind.add(UInt64(shardBytes ?? 0))
    try tensors.visit { (tensor) throws(Fault) in
      kind.addWords(tensor.name, bytes: textLength(tensor.name))
      kind.add(UInt64(tensor.type.rawValue))
      kind.add(UInt64(tensor.bytes))
    }
    try pointee.open(Ranks.AllTokens(), kind: kind)
    pointee.expect(SpreadTensor.words)
  }
}
