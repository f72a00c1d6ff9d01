import CMoE
import Foundation
import Testing

@Suite("Version and errors")
struct VersionTests {
  @Test func theLoadedLibraryIsTheOneOfTheHeader() {
    #expect(moe_version() == Int32(MOE_VERSION_MAJOR * 10000 + MOE_VERSION_MINOR * 100 + MOE_VERSION_PATCH))
    #expect(String(cString: moe_version_string()) == MOE_VERSION_STRING)
    #expect(MOE_VERSION_STRING == "\(MOE_VERSION_MAJOR).\(MOE_VERSION_MINOR).\(MOE_VERSION_PATCH)")
  }

  @Test(arguments: [
    (MOE_OK, "MOE_OK"),
    (MOE_ERROR_INVALID_ARGUMENT, "MOE_ERROR_INVALID_ARGUMENT"),
    (MOE_ERROR_OUT_OF_MEMORY, "MOE_ERROR_OUT_OF_MEMORY"),
    (MOE_ERROR_BAD_STATE, "MOE_ERROR_BAD_STATE"),
    (MOE_ERROR_NOT_FINITE, "MOE_ERROR_NOT_FINITE"),
    (MOE_ERROR_CANCELLED, "MOE_ERROR_CANCELLED"),
    (MOE_ERROR_IO, "MOE_ERROR_IO"),
    (MOE_ERROR_COMMUNICATION, "MOE_ERROR_COMMUNICATION"),
    (moe_status(rawValue: 8), "unknown status"),
    (moe_status(rawValue: .max), "unknown status"),
  ])
  func everyStatusHasItsName(status: moe_status, name: String) {
    #expect(String(cString: moe_status_name(status)) == name)
  }

  @Test func aMessageNamesTheArgumentAndTheValues() throws {
    let layer = try Layer()
    var config = layer.config
    config.top_k = 9
    config.n_experts = 8
    var out: OpaquePointer?
    #expect(moe_layer_create(layer.context, &config, &out) == MOE_ERROR_INVALID_ARGUMENT)
    #expect(lastError() == "top_k = 9 exceeds n_experts = 8")

    // Neither success nor free clears it.
    try check(moe_context_create(nil, &out))
    moe_context_free(out)
    #expect(lastError() == "top_k = 9 exceeds n_experts = 8")
  }

  @Test(arguments: [-1, -0.1, -1.5e-7, -999_999.6, -123_456_789, -.leastNonzeroMagnitude, -1e308] as [Double])
  func aMessageShowsANumberToSixDigits(number: Double) throws {
    let layer = try Layer()
    #expect(moe_clip_grad_norm(layer.context, nil, 0, number, nil) == MOE_ERROR_INVALID_ARGUMENT)
    let word = try #require(lastError().split(separator: " ").dropFirst(2).first, "max_norm = ...: \(lastError())")
    let shown = try #require(Double(word), "\(lastError())")
    #expect(abs(shown / number - 1) < 1e-5, "\(lastError())")
  }

  @Test func everyThreadHasItsOwnMessage() {
    #expect(moe_context_create(nil, nil) == MOE_ERROR_INVALID_ARGUMENT)
    let mine = lastError()
    #expect(!mine.isEmpty)

    let theirs = inNewThread {
      let before = lastError()
      _ = moe_layer_zero_grad(nil)
      return [before, lastError()]
    }
    #expect(theirs[0] == "", "empty before the thread's first failure")
    #expect(theirs[1] != "" && theirs[1] != mine)
    #expect(lastError() == mine)
  }
}

/// The result of `body`, run in a thread that has never called the library.
private func inNewThread(_ body: @escaping @Sendable () -> [String]) -> [String] {
  final class Box: @unchecked Sendable { var value: [String] = [] }
  let box = Box()
  let done = DispatchSemaphore(value: 0)
  Thread.detachNewThread {
    box.value = body()
    done.signal()
  }
  done.wait()
  return box.value
}
