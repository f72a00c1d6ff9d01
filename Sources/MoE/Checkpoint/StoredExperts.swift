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
        guard entry.matrices.first.isUnallocated else { return }
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

  /// What reading takes beside the matrices themselves: room for a tensor that is not as they are.
  var rawBytes: Int {
    var most = 0
    for expert in 0..<group.experts {
      forEach(expert) { tensor, place in
        if isDirect(tensor, place) { return }
        most = max(most, place.bytes(tensor.matrices.elements))
      }
    }
    return most
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
    var failure: (error: Int32, file: Int32) = (0, 0)
    forEach(expert) { tensor, stored in
      guard failure.error == 0 else { return }
      func get(_ file: Int32, _ offset: Int, _ bytes: Int, _ memory: UnsafeMutableRawPointer) -> Bool {
        let input = files[Int(file)]!
        let error = input.read(offset, bytes, to: memory)
        if error != 0 { failure = (error, input.descriptor) }
        return error == 0
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
}
