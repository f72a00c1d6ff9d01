import CShims

/// The layout that a checkpoint's names look like, for messages.
struct LikelyLayout {
  let layout: Layout
  /// Its names begin with the first `length` bytes of this one.
  let name: UnsafePointer<CChar>
  let length: Int

  /// Tensors with that beginning that the layout knows.
  fileprivate let known: Int
  /// Which of two is likelier where both know as many: the one that was asked for, the one of the layout's own beginning, the
  /// one that has all it may have.
  fileprivate let rank: Int

  fileprivate func isLikelier(than other: LikelyLayout) -> Bool {
    known != other.known ? known > other.known : rank > other.rank
  }
}

extension Checkpoint {
  /// `number`: of a layer of that number, else of the first there is. `own`: what was asked for. It takes one pass over the
  /// names for each layout.
  func likelyLayout(number: Int?, own: Layout) -> LikelyLayout? {
    var best: LikelyLayout?
    var layoutNumber: Int32 = 0
    while let layout = Layout(rawValue: layoutNumber) {
      layoutNumber += 1
      var form = 0
      while let rules = layout.form(form) {
        form += 1
        guard let found = find(layout, rules, number: number, own: own) else { continue }
        if best.map({ found.isLikelier(than: $0) }) ?? true { best = found }
      }
    }
    return best
  }

  /// The first tensor that can be the experts' last matrix, where all that it needs stands beside it.
  private func find(_ layout: Layout, _ rules: LayoutForm, number: Int?, own: Layout) -> LikelyLayout? {
    guard let down = rules.first(of: cText("experts.down.weight")) else { return nil }
    return withText {
      down.append(to: &$0, expert: 0, part: "_blocks")
    } body: { end in
      let endLength = textLength(end)
      for tensor in all where hasEnd(tensor.name, end) {
        let length = textLength(tensor.name) - endLength
        let isWhole = length == 0 || tensor.name[length - 1] == CChar(UInt8(ascii: "."))
        if !isWhole || !hasNumber(tensor.name, length, number) { continue }
        if let found = measure(layout, rules, tensor.name, length, own: own) { return found }
      }
      return nil
    }
  }

  /// nil where a tensor is missing, or is transposed.
  private func measure(
    _ layout: Layout, _ rules: LayoutForm, _ name: UnsafePointer<CChar>, _ length: Int, own: Layout
  ) -> LikelyLayout? {
    var absent = 0
    for index in 0..<rules.count where rules[index].holdsParameters {
      if tensor(rules[index], name, length) != nil { continue }
      if !rules[index].isOptional { return nil }
      absent += 1
    }
    if !isUpright(rules, name, length) { return nil }
    let known = withText {
      $0.append(name, count: length)
    } body: {
      count(of: rules, beginning: $0)
    }
    let rank = (layout == own ? 1000 : 0) + (hasBeginning(of: layout, name, length) ? 100 : 0) - absent
    return LikelyLayout(layout: layout, name: name, length: length, known: known, rank: rank)
  }

  private func count(of rules: LayoutForm, beginning: UnsafePointer<CChar>) -> Int {
    var known = 0
    var index = all.firstIndex(notBefore: beginning)
    while index < count, let own = text(all[index].name, after: beginning) {
      var isKnown = false
      for rule in 0..<rules.count where rules[rule].expert(of: own) != nil { isKnown = true }
      if isKnown { known += 1 }
      index += 1
    }
    return known
  }

  private func tensor(_ rule: TensorRule, _ name: UnsafePointer<CChar>, _ length: Int) -> StoredTensor? {
    withText {
      $0.append(name, count: length)
      rule.append(to: &$0, expert: 0, part: "_blocks")
    } body: {
      self.tensor($0)
    }
  }

  /// Whether H of the gate [E,H] is where the form has it in the experts' last matrices [E,H,I], or transposed [E,I,H].
  private func isUpright(_ rules: LayoutForm, _ name: UnsafePointer<CChar>, _ length: Int) -> Bool {
    guard let down = rules.first(of: cText("experts.down.weight")), down.listing == .stacked,
      let gate = rules.first(of: cText("router.weight")), let gateTensor = tensor(gate, name, length),
      let downTensor = tensor(down, name, length)
    else { return true }
    if gateTensor.shape.rank != 2 || downTensor.shape.rank != 3 { return false }
    return downTensor.shape[down.transposed ? 2 : 1] == gateTensor.shape[1]
  }

  /// Whether the first `length` bytes have the number between two dots; nil is any.
  private func hasNumber(_ name: UnsafePointer<CChar>, _ length: Int, _ number: Int?) -> Bool {
    guard let number else { return true }
    for i in 0..<length where i == 0 || name[i - 1] == CChar(UInt8(ascii: ".")) {
      if let (found, behind) = leadingNumber(name + i), found == number, behind[0] == CChar(UInt8(ascii: ".")) {
        return true
      }
    }
    return false
  }

  private func hasBeginning(of layout: Layout, _ name: UnsafePointer<CChar>, _ length: Int) -> Bool {
    var index = 0
    while let start = layout.start(index) {
      index += 1
      guard let rest = text(name, after: start), let (_, behind) = leadingNumber(rest) else { continue }
      if let own = text(behind, after: layout.end), own == name + length { return true }
    }
    return false
  }
}

extension LayoutForm {
  fileprivate func first(of parameter: UnsafePointer<CChar>) -> TensorRule? {
    for index in 0..<count where self[index].holds(parameter) { return self[index] }
    return nil
  }
}
