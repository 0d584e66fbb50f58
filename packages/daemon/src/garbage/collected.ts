/** What went of one kind, or would. */
export interface Collected {
  readonly names: readonly string[]
  readonly bytes: number
}

export interface CollectFiles {
  readonly olderThanMs: number
  readonly nowMs: number
  /** Says what would go. */
  readonly dryRun: boolean
  readonly signal: AbortSignal
}
