import CShims

/// How each matrix of a model is packed while its files are read.
struct ModelPacking {
  private let own: UnsafeMutablePointer<OwnPacking>  // [own parameters]
  private let layers: UnsafeMutablePointer<LayerSources>  // [N]
  private let dense: UnsafeMutablePointer<GroupChoices>  // [N], until all are known
  /// By which few bits are chosen, of whole matrices: these are in memory before they are packed.
  private var calibration: CalibrationPointer?

  private init(_ arena: inout Arena, own count: Int, layers n: Int) {
    own = arena.take(OwnPacking.self, count)
    layers = arena.take(LayerSources.self, n)
    dense = arena.take(GroupChoices.self, n)
  }

  /// The tensors are all there.
  static func make(
    _ loading: ModelLoading, _ forms: PartForms, _ calibration: CalibrationPointer?
  ) throws(Fault) -> ModelPacking {
    let model = loading.tensors.model
    let (count, layers) = (model.parameters.count, model.configuration.layers)
    let allocator = model.context.pointee.allocator
    var packing = try allocator.make { ModelPacking(&$0, own: count, layers: layers) }
    packing.calibration = calibration
    packing.own.initialize(repeating: OwnPacking(), count: count)
    packing.layers.initialize(repeating: LayerSources(), count: layers)
    packing.dense.initialize(repeating: GroupChoices(), count: layers)
    do throws(Fault) {
      try packing.fill(loading, forms)
    } catch {
      packing.free(allocator)
      throw error
    }
    return packing
  }

  func free(_ allocator: Allocator) { allocator.deallocate(own) }

  private func fill(_ loading: ModelLoading, _ forms: PartForms) throws(Fault) {
    let model = loading.tensors.model
    let (c, context) = (model.configuration, model.context)
    for index in 0..<model.parameters.count {
      let wanted = forms.preparation(of: model.parameters.parameter(index).name)
      if model.isPackable(.own(index), wanted) { own[index].wanted = wanted }
    }
    try loading.tensors.parts { (part) throws(Fault) in
      switch part {
      case .own(let entry): try add(entry, try loading.stored(entry), model, forms)
      case .block(let n, let layer):
        layers[n] = try loading.withBlock(n, layer) { (loading, _) throws(Fault) in
          try loading.sources { parameter in forms.preparation(of: parameter.name, ofLayer: n) }
        }
      }
    }
    for index in 0..<model.parameters.count { try own[index].resolve(model.parameters.parameter(index), c, context) }
    for n in 0..<c.layers {
      guard let layer = model.layer(n) else { continue }
      let configuration = layer.pointee.configuration
      if !loading.tensors.isMoE(n) { layers[n].routed = dense[n].sources(configuration.groups[0], in: context) }
      do throws(Fault) {
        try configuration.require(layers[n].forms)
      } catch {
        guard let (one, down) = model.misfit(n, layers[n].forms) else {
          throw error.reworded { "layers.\(n).ffn: \($0)" }
        }
        throw error.reworded { "\(one) and \(down): \($0)" }
      }
    }
  }

  private func add(_ entry: FamilyEntry, _ place: StoredPlace, _ model: Model, _ forms: PartForms) throws(Fault) {
    switch model.list[entry.index] {
    case .own(let index): own[index].add(entry, place)
    case .feedForward(let n, let index):
      let parameters = model.layer(n)!.pointee.parameters
      guard let matrix = parameters.matrix(parameters[index])?.matrix else { return }
      let wanted = forms.preparation(of: entry.parameter.name)
      dense[n][matrix] = MatrixChoice(wanted: wanted, code: wanted.isStored ? entry.code(place) : nil)
    }
  }

  /// Memory for panels, and for what is not packed; of MoE layers when they are read.
  func makeRoom(_ loading: ModelLoading) throws(Fault) {
    let model = loading.tensors.model
    for index in 0..<model.parameters.count {
      let packing = own[index]
      try model.parameters.makeRoom(
        index, isByPanels(index) ? packing.forms : nil, in: model.context)
    }
    for n in 0..<model.configuration.layers where !loading.tensors.isMoE(n) {
      guard let layer = model.layer(n) else { continue }
      do throws(Fault) { try layer.pointee.makeRoom(self.layer(n).forms) } catch { throw error.inLayer(n) }
    }
  }

  /// What the model will take, in bytes: the matrices of routed experts, and all else.
  func bytes(_ loading: ModelLoading) -> (experts: Int, others: Int) {
    let model = loading.tensors.model
    var (experts, others) = (0, 0)
    for index in 0..<model.parameters.count {
      let parameter = model.parameters.parameter(index)
      let (rows, depth, _) = parameter.shape
      others += own[index].forms?.bytes(before: chunks(of: rows), depth) ?? parameter.bytes
    }
    for n in 0..<model.configuration.layers {
      guard let layer = model.layer(n)?.pointee else { continue }
      for index in 0..<layer.parameters.count {
        let parameter = layer.parameters[index]
        let bytes = packedBytes(parameter, layer, n) ?? parameter.bytes
        if loading.tensors.isMoE(n) && layer.comesFromFile(parameter) { experts += bytes } else { others += bytes }
      }
    }
    return (experts, others)
  }

  /// nil where it is not packed.
  private func packedBytes(_ parameter: Parameter, _ layer: Layer, _ n: Int) -> Int? {
    guard let place = layer.parameters.matrix(parameter),
      let forms = layers[n].forms[layer.configuration.groups[place.group]]
    else { return nil }
    let (count, rows, depth) = parameter.shape
    return forms[place.matrix].bytes(count, rows: rows, depth: depth)
  }

  /// Packs what has to be whole for that.
  func finish(_ model: Model) throws(Fault) {
    for index in 0..<model.parameters.count {
      guard let forms = own[index].forms else { continue }
      try model.parameters.finish(index, isByPanels(index) ? nil : forms[0], calibration, in: model.context)
    }
    for n in 0..<model.configuration.layers where !model.configuration.isMoE(n) {
      guard let layer = model.layer(n) else { continue }
      do throws(Fault) { try finish(n, layer) } catch { throw error.inLayer(n) }
    }
  }

  /// The same of layer n's ffn, which has been read.
  func finish(_ n: Int, _ layer: LayerPointer) throws(Fault) {
    guard let calibration, !layers[n].forms.isEmpty else { return }
    try layer.pointee.keepPacked(layers[n].forms, calibration.pointee.layer(n))
  }

  private func isByPanels(_ index: Int) -> Bool { calibration == nil && own[index].isByPanels }

  /// How its experts' matrices are packed as they are read.
  func layer(_ n: Int) -> LayerSources { calibration == nil ? layers[n] : LayerSources() }

  /// How a tensor's rows are packed; nil where they are not packed as they are read.
  func source(_ entry: FamilyEntry, _ model: Model) -> PanelSource? {
    switch model.list[entry.index] {
    case .own(let index):
      if !isByPanels(index) { return nil }
      return own[index].source(entry.places.stretches.0.lowerBound / chunkWidth, entry.parameter.type)
    case .feedForward(let n, let index):
      let parameters = model.layer(n)!.pointee.parameters
      guard let matrix = parameters.matrix(parameters[index])?.matrix else { return nil }
      return layer(n).routed?[matrix]
    }
  }

  /// Where they go: there is room.
  func target(_ entry: FamilyEntry, _ model: Model) -> PanelTarget? {
    switch model.list[entry.index] {
    case .own: return entry.parameter.panels.map { .matrix($0) }
    case .feedForward(let n, let index):
      let layer = model.layer(n)!.pointee
      let group = layer.configuration.groups[0]
      guard let matrix = layer.parameters.matrix(layer.parameters[index])?.matrix,
        let prepared = layer.prepared.of(group)
      else { return nil }
      return .expert(prepared, matrix, group)
    }
  }
}

extension Model {
  /// The names of two matrices of layer n's experts that do not take the same tokens: one of the forms has to be another.
  fileprivate func misfit(
    _ n: Int, _ forms: LayerForms
  ) -> (one: UnsafePointer<CChar>, down: UnsafePointer<CChar>)? {
    let groups = feedForwards[n]!.pointee.configuration.groups
    let one = matrix(n) { group, matrix in forms[groups[group]].map { $0[matrix].tokens != $0.tokens } ?? false }
    let down = one.flatMap { one in matrix(n) { group, matrix in group == one.group && matrix == .down } }
    return down.map { (one!.name, $0.name) }
  }

  /// The first of layer n's matrices that is the one.
  private func matrix(
    _ n: Int, _ isIt: (Int, PreparedWeights.Matrix) -> Bool
  ) -> (group: Int, name: UnsafePointer<CChar>)? {
    let parameters = feedForwards[n]!.pointee.parameters
    for index in 0..<parameterCount {
      guard case .feedForward(n, let own) = list[index], let place = parameters.matrix(parameters[own]),
        isIt(place.group, place.matrix)
      else { continue }
      return (place.group, parameter(index).name)
    }
    return nil
  }
}

extension PartForms {
  /// Of a parameter of layer n's ffn.
  fileprivate func preparation(of name: UnsafePointer<CChar>, ofLayer n: Int) -> Layer.Preparation {
    withText {
      ModelParameters.append(n, to: &$0)
      $0.append("ffn.")
      $0.append(name)
    } body: {
      preparation(of: $0)
    }
  }
}
