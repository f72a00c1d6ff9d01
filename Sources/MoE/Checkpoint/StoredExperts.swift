import CShims

/// The matrices of a group of experts in a checkpoint's files, to be read expert by expert. They are read with pread, not
/// through the mapping: an error of the disk, or a file that was cut short, is then a status and not a fault of the process,
/// and no page of the file counts as the process's own.
struct StoredExperts {
  /// One tensor, or one for each expert, which holds the matrices of one or two parameters.
  fileprivate struct Tensor {
    let matrices: FusedMatrices
    let first: Parameters.Role
    let second: Parameters.Role?

    func matrix(_ part: Int) -> PreparedWeights.Matrix { (part == 0 ? first : second!).matrix! }
  }

  let group: ExpertGroup
  let kernels: UnsafePointer<moei_kernels>
  // [fileCount] opened for ourselves; nil = nothing of theirs is there
  private let files: UnsafeMutablePointer<InputFile?>
  private let fileCount: Int
  private let tensors: UnsafeMutablePointer<Tensor?>  // [mostTensors]
  private let places: UnsafeMutablePointer<StoredPlace>  // [mostTensors, experts]
  /// Of quantised weights, [mostTensors, experts], since those of a checkpoint are gone with it; nil where there are none.
  private let matrices: UnsafeMutablePointer<UnsafeMutablePointer<QuantisedMatrix>?>

  private static var mostTensors: Int { 3 }  // gate, up, down

  init(_ arena: inout Arena, _ group: ExpertGroup, _ kernels: UnsafePointer<moei_kernels>, files count: Int) {
    matrices = arena.take(UnsafeMutablePointer<QuantisedMatrix>?.self, 1)
    self.group = group
    self.kernels = kernels
    fileCount = count
    files = arena.take(InputFile?.self, count)
    tensors = arena.take(Tensor?.self, Self.mostTensors)
    places = arena.take(StoredPlace.self, Self.mostTensors, group.experts)
  }

  /// Notes where everything is. `loading` has been checked. After an error nothing is open.
  func open(_ loading: Loading, _ parameters: Parameters) throws(Fault) {
    files.initialize(repeating: nil, count: fileCount)
    tensors.initialize(repeating: nil, count: Self.mostTensors)
    matrices.initialize(to: nil)
    do throws(Fault) {
      var count = 0
      try loading.tensors.entries { (entry) throws(Fault) in
        guard loading.tensors.layer.comesFromFile(entry.matrices.first) else { return }
        try add(count, entry, loading, parameters)
        count += 1
      }
    } catch {
      close(loading.tensors.layer.context.pointee.allocator)
      throw error
    }
  }

  func close(_ allocator: Allocator) {
    for file in 0..<fileCount { files[file]?.close() }
    if let own = matrices.pointee { allocator.deallocate(own) }
  }

  private func add(
    _ number: Int, _ entry: LayerTensors.Entry, _ loading: Loading, _ parameters: Parameters
  ) throws(Fault) {
    let matrices = FusedMatrices(entry.rule, entry.matrices.first, entry.matrices.second, byExpert: true)
    tensors[number] = Tensor(
      matrices: matrices, first: parameters.role(of: matrices.first),
      second: matrices.second.map { parameters.role(of: $0) })
    // A parameter as it is holds all its experts in one tensor, however many there are.
    var isNumbered = entry.isNumbered
    if entry.rule.listing == .plain { isNumbered = false }
    for expert in 0..<group.experts {
      let stored = try loading.place(entry, isNumbered ? expert : 0)
      try stored.forEachFile { (file) throws(Fault) in try open(file, loading.checkpoint) }
      let place = number * group.experts + expert
      (places + place).initialize(
        to: try owned(stored, place, loading).from(isNumbered ? 0 : expert * matrices.elements))
    }
  }

  /// With what it is made of in memory of our own.
  private func owned(_ stored: StoredPlace, _ place: Int, _ loading: Loading) throws(Fault) -> StoredPlace {
    guard let matrix = stored.matrix else { return stored }
    let allocator = loading.tensors.layer.context.pointee.allocator
    if matrices.pointee == nil {
      matrices.pointee = try allocator.allocate(QuantisedMatrix.self, count: Self.mostTensors * group.experts)
    }
    let own = matrices.pointee! + place
    own.initialize(to: matrix.pointee)
    return stored.noting(own)
  }

  /// The file, opened for ourselves.
  private func open(_ file: Int32, _ checkpoint: Checkpoint) throws(Fault) {
    if files[Int(file)] == nil { files[Int(file)] = try checkpoint.input(file).duplicate() }
  }

  // MARK: reading

  private func forEach(_ expert: Int, _ body: (Tensor, StoredPlace) -> Void) {
    for number in 0..<Self.mostTensors {
      if let tensor = tensors[number] { body(tensor, places[number * group.experts + expert]) }
    }
  }

  /// Of one expert in the files.
  func bytes(_ expert: Int) -> Int {
    var sum = 0
    forEach(expert) { tensor, place in
      sum += place.bytes(tensor.matrices.elements)
    }
    return sum
  }

  /// What reading takes beside the matrices themselves: room for a tensor that is not as they are; where they become panels at once, for
  /// any tensor, and for the rows of a panel.
  func rawBytes(_ sources: GroupSources?) -> Int {
    var most = 0
    for expert in 0..<group.experts {
      forEach(expert) { tensor, place in
        if sources == nil && isDirect(tensor, place) { return }
        var stages = Arena()
        if let sources {
          for part in 0..<tensor.matrices.parts {
            var own = Arena()
            _ = makeStage(&own, tensor, part, sources)
            stages.cover(own)
          }
        }
        most = max(most, room(tensor, place) + stages.bytes)
      }
    }
    return most
  }

  /// For what is read of an expert.
  private func room(_ tensor: Tensor, _ place: StoredPlace) -> Int {
    let line = Allocator.alignment
    return (place.bytes(tensor.matrices.elements) + line - 1) / line * line
  }

  private func makeStage(_ arena: inout Arena, _ tensor: Tensor, _ part: Int, _ sources: GroupSources) -> PanelStage {
    PanelStage(&arena, sources[tensor.matrix(part)], columns: tensor.matrices.columns, kernels)
  }

  /// Whether what is stored is the matrix as it will be read.
  private func isDirect(_ tensor: Tensor, _ place: StoredPlace) -> Bool {
    place.form == StoredForm(group.weights) && tensor.matrices.parts == 1 && !tensor.matrices.transposed
  }

  /// Reads an expert's matrices to number `place` of `rows`. `raw`: [rawBytes]. Returns 0, or an error and the
  /// descriptor of the file.
  func read(
    _ expert: Int, to rows: ExpertMatrices, at place: Int, raw: UnsafeMutableRawPointer
  ) -> (error: Int32, file: Int32) {
    var failure: Offload.Failure = (0, 0)
    forEach(expert) { tensor, stored in
      guard failure.error == 0 else { return }
      func get(_ file: Int32, _ offset: Int, _ bytes: Int, _ memory: UnsafeMutableRawPointer) -> Bool {
        readFile(file, offset, bytes, memory, &failure)
      }
      let (m, count) = (tensor.matrices, tensor.matrices.elements)
      let target = rows[tensor.first]! + place * group.matrixBytes
      if isDirect(tensor, stored) {
        _ = get(stored.file, stored.offset, stored.bytes(count), target)
        return
      }
      guard let values = stored.fetch(count, to: raw, get) else { return }
      m.copy(0, from: values, at: 0, to: ParameterValues(target, group.weights, kernels), at: 0)
      if let second = tensor.second {
        let target = rows[second]! + place * group.matrixBytes
        m.copy(1, from: values, at: 0, to: ParameterValues(target, group.weights, kernels), at: 0)
      }
    }
    return failure
  }

  /// The same as panels, to number `place` of `slots`. Where a form of the file's own cannot hold them, the error is Offload.notHeld. What others
  /// cannot hold comes out as numbers that are not finite.
  func pack(
    _ expert: Int, _ sources: GroupSources, to slots: PreparedWeights, at place: Int, raw: UnsafeMutableRawPointer
  ) -> Offload.Failure {
    var failure: Offload.Failure = (0, 0)
    forEach(expert) { tensor, stored in
      guard failure.error == 0 else { return }
      let values = stored.fetch(tensor.matrices.elements, to: raw) { readFile($0, $1, $2, $3, &failure) }
      guard let values else { return }
      for part in 0..<tensor.matrices.parts {
        var arena = Arena(raw + room(tensor, stored))
        let stage = makeStage(&arena, tensor, part, sources)
        let matrix = tensor.matrix(part)
        for chunk in 0..<chunks(of: tensor.matrices.rows) {
          let isHeld = tensor.matrices.pack(
            part, chunk, from: values, stage, into: slots.panel(matrix, group, place, chunk))
          if !isHeld && sources[matrix].isStored { failure = (Offload.notHeld, Int32(truncatingIfNeeded: expert)) }
        }
      }
    }
    return failure
  }

  private func readFile(
    _ file: Int32, _ offset: Int, _ bytes: Int, _ memory: UnsafeMutableRawPointer, _ failure: inout Offload.Failure
  ) -> Bool {
    let input = files[Int(file)]!
    let error = input.read(offset, bytes, to: memory)
    if error != 0 { failure = (error, input.descriptor) }
    return error == 0
  }
}
