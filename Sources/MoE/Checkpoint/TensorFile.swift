/// A file of tensors, checked: safetensors, or GGUF where it begins so.
struct TensorFile {
  let input: InputFile
  let isGGUF: Bool
  /// Of the whole file; nil where nobody asked for it.
  private let mapping: UnsafeRawPointer?
  private let table: TensorTable

  /// [count], sorted by name.
  var tensors: UnsafeMutablePointer<StoredTensor> { table.tensors }
  var count: Int { table.count }

  init(
    path: UnsafePointer<CChar>, action: StaticString = "opening a file", allocator: Allocator, isMapped: Bool
  ) throws(Fault) {
    let input = try InputFile(path: path, action: action)
    do throws(Fault) {
      isGGUF = GGUFHeader.begins(input)
      table =
        isGGUF
        ? try GGUFHeader.tensors(input, path: path, allocator)
        : try Safetensors.tensors(input, path: path, allocator)
    } catch {
      input.close()
      throw error
    }
    do throws(Fault) {
      mapping = isMapped ? try input.map() : nil
    } catch {
      allocator.deallocate(table.tensors)
      input.close()
      throw error
    }
    self.input = input
  }

  /// Where a tensor's bytes are in memory, if the file is still what it was.
  func data(_ tensor: StoredTensor) throws(Fault) -> UnsafeRawPointer {
    try input.requireUnchanged()
    return mapping! + tensor.offset
  }

  func close(allocator: Allocator) {
    allocator.deallocate(tensors)
    input.unmap(mapping)
    input.close()
  }
}

/// Tensors of a file, with their names in the same block of memory.
struct TensorTable {
  let tensors: UnsafeMutablePointer<StoredTensor>  // [count]
  let count: Int

  init(_ tensors: UnsafeMutablePointer<StoredTensor>, _ count: Int) { (self.tensors, self.count) = (tensors, count) }

  func sortByName(_ path: UnsafePointer<CChar>) throws(Fault) {
    let tensors = tensors
    heapSort(
      count, isLess: { compareText(tensors[$0].name, tensors[$1].name) < 0 },
      exchange: { swapAt(tensors, $0, $1) })
    for i in 1..<max(count, 1) where compareText(tensors[i - 1].name, tensors[i].name) == 0 {
      throw .invalid("\(tensors[i].name): two tensors have this name: \(path)")
    }
  }

  func sortByOffset() {
    let tensors = tensors
    heapSort(
      count,
      isLess: {
        tensors[$0].offset == tensors[$1].offset
          ? tensors[$0].bytes < tensors[$1].bytes : tensors[$0].offset < tensors[$1].offset
      },
      exchange: { swapAt(tensors, $0, $1) })
  }
}

func swapAt(_ tensors: UnsafeMutablePointer<StoredTensor>, _ i: Int, _ j: Int) {
  let kept = tensors[i]
  tensors[i] = tensors[j]
  tensors[j] = kept
}

/// Position of a name among tensors sorted by name.
func find(_ name: UnsafePointer<CChar>, in tensors: UnsafePointer<StoredTensor>, count: Int) -> Int? {
  var (low, high) = (0, count)
  while low < high {
    let middle = (low + high) / 2
    let order = compareText(tensors[middle].name, name)
    if order == 0 { return middle }
    if order < 0 { low = middle + 1 } else { high = middle }
  }
  return nil
}
