/** What the daemon and a conversion process say to each other. All of it is plain data. */
import { AppError, type ErrorCode } from '@dormouse/api/errors.ts'
import type { ArchiveImage } from './archive-image.ts'
import type { Credentials } from './keychain.ts'
import type { ImageLimits } from './limits.ts'
import type { Descriptor } from './manifest.ts'
import type { Platform } from './platform.ts'
import type { NetworkPolicy } from './registry-network.ts'
import type { RootfsCompression } from './rootfs-writer.ts'

interface Dirs {
  readonly dataDir: string
  readonly runDir: string
}

/** Where layers are pulled from. */
export interface Origin {
  readonly registry: string
  readonly host: string
  readonly repository: string
}

/** Gets the layers that are missing, and makes a rootfs of all. */
export interface ConvertJob {
  readonly kind: 'convert'
  readonly dirs: Dirs
  /** What the names of its drafts begin with. */
  readonly drafts: string
  readonly layers: readonly Descriptor[]
  readonly diffIds: readonly string[]
  /** Absent when all layers are in the store already. */
  readonly from?: { readonly origin: Origin; readonly credentials: Credentials | undefined; readonly policy: NetworkPolicy }
  readonly rootfs: string
  readonly compression: RootfsCompression
  readonly limits: ImageLimits
}

/** Puts what an archive holds into the store, and says which image it is. Without a path the archive comes over standard input. */
export interface IngestJob {
  readonly kind: 'ingest'
  readonly dirs: Dirs
  readonly drafts: string
  readonly path: string | undefined
  readonly name?: string
  readonly platform: Platform
  readonly limits: ImageLimits
}

/** Puts what a tar holds, which comes over standard input, into the empty ext4 in `file`. */
export interface FillJob {
  readonly kind: 'fill'
  readonly file: string
  /** dormouse-fill, and whom it runs as. */
  readonly program: string
  readonly user: { readonly uid: number; readonly gid: number } | undefined
  readonly limits: ImageLimits
}

/** Sends an image that is ready to a registry. */
export interface PushJob {
  readonly kind: 'push'
  readonly dirs: Dirs
  readonly layers: readonly Descriptor[]
  readonly config: { readonly digest: string; readonly bytes: Uint8Array }
  readonly manifest: Uint8Array
  readonly to: {
    readonly origin: Origin
    readonly tag: string
    readonly credentials: Credentials | undefined
    readonly policy: NetworkPolicy
    /** A repository of the same registry that has the layers. */
    readonly mountFrom: string | undefined
  }
  readonly limits: ImageLimits
}

export type Job = ConvertJob | IngestJob | FillJob | PushJob

export interface Pushed {
  readonly layers: number
  /** Of its layers, sent or there already. */
  readonly bytes: number
}

export interface Filled {
  readonly entries: number
}

export interface Converted {
  readonly rootfsBytes: number
}

export interface Ingested {
  readonly image: ArchiveImage
  /** All blobs that were stored, whether the image needs them or not. */
  readonly stored: readonly string[]
}

export type FromWorker =
  /** Bytes that are here of each distinct layer, in the order in which the image has them. */
  | { readonly kind: 'progress'; readonly layers: readonly number[] }
  | { readonly kind: 'converting' }
  | { readonly kind: 'done'; readonly result: Converted | Ingested | Filled | Pushed }
  | { readonly kind: 'failed'; readonly error: PlainError }

export type ToWorker = { readonly kind: 'job'; readonly job: Job } | { readonly kind: 'cancel' }

/** An error that can cross a process's border. */
export interface PlainError {
  readonly code: ErrorCode | undefined
  readonly message: string
  readonly hint?: string
  readonly detail?: Readonly<Record<string, unknown>>
  readonly retryAfterSeconds?: number
  readonly stack?: string
  readonly cause?: PlainError
}

export function toPlainError(error: unknown, depth = 0): PlainError {
  if (!(error instanceof Error)) return { code: undefined, message: String(error) }
  const cause = error.cause === undefined || depth >= 6 ? {} : { cause: toPlainError(error.cause, depth + 1) }
  if (!(error instanceof AppError))
    return { code: undefined, message: error.message, ...(error.stack === undefined ? {} : { stack: error.stack }), ...cause }
  return {
    code: error.code,
    message: error.message,
    ...(error.hint === undefined ? {} : { hint: error.hint }),
    ...(error.detail === undefined ? {} : { detail: error.detail }),
    ...(error.retryAfterSeconds === undefined ? {} : { retryAfterSeconds: error.retryAfterSeconds }),
    ...cause,
  }
}

export function fromPlainError(plain: PlainError): Error {
  const cause = plain.cause && fromPlainError(plain.cause)
  if (plain.code === undefined) {
    const error = new Error(plain.message, cause === undefined ? undefined : { cause })
    if (plain.stack !== undefined) error.stack = plain.stack
    return error
  }
  return new AppError(plain.code, plain.message, {
    ...(plain.hint === undefined ? {} : { hint: plain.hint }),
    ...(plain.detail === undefined ? {} : { detail: plain.detail }),
    ...(plain.retryAfterSeconds === undefined ? {} : { retryAfterSeconds: plain.retryAfterSeconds }),
    ...(cause === undefined ? {} : { cause }),
  })
}
