import CShims

/// What the stages of a router read; in backward, of one chunk of tokens, which are counted from its first.
struct RouteWork {
  let c: Configuration
  let matmul: Matmul
  let lanes: Int  // threads at most, each with scratch of its own
  let x: UnsafePointer<Float>  // [T,H]
  let parameters: Parameters
  let routing: Routing
  let draws: Draws
  let activeExperts: Int  // that may be chosen
  let mayLeaveSlotsEmpty: Bool  // whether a choice may come without a row

  var kernels: UnsafePointer<moei_kernels> { matmul.kernels }
  var tokens: Int { routing.tokens }
}

/// A stage of a router, which calls what it shares with the others by its own name.
protocol RouteStage {
  var work: RouteWork { get }
}

extension RouteStage {
  var c: Configuration { work.c }
  var kernels: UnsafePointer<moei_kernels> { work.matmul.kernels }
  var parameters: Parameters { work.parameters }
  var routing: Routing { work.routing }
}
