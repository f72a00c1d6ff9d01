// Panels of experts that lie in a file (Pretrained/LoadPacked.swift), and where those of a layer's own lie, for a file.

extension Layer {
  /// Which matrix of which group parameter number `index` is; nil where no token is multiplied by it.
  private func matrix(_ index: Int) -> (group: ExpertGroup, matrix: PreparedWeights.Matrix)? {
    parameters.matrix(parameters[index]).map { (configuration.groups[$0.group], $0.matrix) }
  }

  func multiplies(_ index: Int) -> Bool { matrix(index) != nil }

  /// The panels of all experts' matrices that parameter number `index` is; nil where there are none.
  func packed(_ index: Int) -> PackedMatrices? {
    guard let (group, matrix) = matrix(index), !parameters.of(group).areOffloaded, let own = prepared.of(group) else {
      return nil
    }
    let (_, rows, depth) = parameters[index].shape
    let form = own.forms[matrix]
    return form.bytes(group.experts, rows: rows, depth: depth).map {
      PackedMatrices(forms: RowForms(form), panels: own.panel(matrix, group, 0, 0), bytes: $0)
    }
  }

  /// Multiplies by panels from a file from now on, and keeps nothing else of those weights. `residentLimit`: routed experts' stay in the
  /// file, and so much of them is in memory; nil: all are mapped. `place`: where a parameter's panels are in the files.
  mutating func takePanels(
    _ panels: (Int) -> PackedMatrices?, residentLimit: ResidentLimit?, place: (Int) -> FilePlace?
  ) throws(Fault) {
    let allocator = context.pointee.allocator
    let (c, own) = (configuration, self)
    let places = try allocator.allocate(PreparedWeights?.self, count: c.groupCount)
    places.initialize(repeating: nil, count: c.groupCount)
    var forms = LayerForms()
    do throws(Fault) {
      for index in 0..<c.groupCount where c.groups[index].multiplies {
        try take(c.groups[index], panels, to: places, &forms)
      }
      try parameters.allocate(withoutPacked: forms, c, allocator)
      if let residentLimit, let group = offloadedGroup, forms[group] != nil {
        try offload((forms, PreparedGroups.Places(places)), group, residentLimit: residentLimit) {
          own.number(of: $0, group).flatMap(place)
        }
      } else {
        var none = Arena()
        replacePrepared(PreparedGroups(&none, c, forms: forms, places: PreparedGroups.Places(places)), nil)
      }
    } catch {
      allocator.deallocate(places)
      throw error
    }
    allocator.deallocate(filePanels)
    filePanels = places
    for index in 0..<parameters.count where panels(index) != nil { parameters.release(index, allocator) }
  }

  /// Of a group's matrix among the parameters.
  private func number(of wanted: PreparedWeights.Matrix, _ group: ExpertGroup) -> Int? {
    for index in 0..<parameters.count {
      if let found = matrix(index), found.group.index == group.index, found.matrix == wanted { return index }
    }
    return nil
  }

  private func take(
    _ group: ExpertGroup, _ panels: (Int) -> PackedMatrices?, to places: UnsafeMutablePointer<PreparedWeights?>,
    _ forms: inout LayerForms
  ) throws(Fault) {
    var (gate, up, down) = (PackedMatrices?.none, PackedMatrices?.none, PackedMatrices?.none)
    var missing: Parameter?
    for index in 0..<parameters.count {
      guard let found = matrix(index), found.group.index == group.index else { continue }
      let own = panels(index)
      if own == nil { missing = parameters[index] }
      switch found.matrix {
      case .gate: gate = own
      case .up: up = own
      case .down: down = own
      }
    }
    if gate == nil && up == nil && down == nil { return }
    if let missing { throw .invalid("\(missing.name): is not packed, but other matrices of these experts are") }
    guard let down else { return }
    let outer = down.forms[0]
    let inner = up.map { $0.forms[0] } ?? outer
    let own = MatrixForms(gate: gate.map { $0.forms[0] } ?? inner, up: inner, down: outer)
    try own.require(group)
    if let others = forms[group], others != own {
      throw .invalid("the experts' matrices are packed in other forms than those of the group before")
    }
    forms[group] = own
    places[group.index] = PreparedWeights(own, gate: gate?.panels, up: up?.panels ?? down.panels, down: down.panels)
  }
}
