import type { Readable } from 'node:stream'
import type { RouteId } from '@dormouse/api/endpoints.ts'
import type { routes } from '@dormouse/api/routes.ts'
import type { Static, TSchema } from 'typebox'
import type { Logger } from '../log.ts'
import type { Caller } from './auth.ts'
import type { JsonBytes } from './json-bytes.ts'
import type { SseBatch } from './streams/sse.ts'

type Of<R, Part extends string> = R extends { readonly [K in Part]: infer S extends TSchema } ? Static<S> : undefined
type Table = typeof routes
type Row<Id extends RouteId> = Table[Id]

/** A request that has passed authorization and the schemas. */
export interface Asked<Id extends RouteId> {
  readonly params: Of<Row<Id>, 'params'>
  readonly query: Of<Row<Id>, 'query'>
  readonly body: Of<Row<Id>, 'body'>
  /** The body of routes that stream it. */
  readonly upload: Readable
  /** Fires when the caller has gone or the daemon closes: it ends waiting, never work. */
  readonly signal: AbortSignal
  readonly log: Logger
  readonly caller: Caller
  header(name: string): string | undefined
  setHeader(name: string, value: string): void
}

type Gives<Id extends RouteId> =
  Row<Id> extends { readonly stream: 'sse' }
    ? AsyncIterable<SseBatch>
    : Row<Id> extends { readonly stream: 'text' }
      ? string
      : // What changes something is told of in the audit log, by the id of its answer.
        Id extends `get${string}` | `list${string}`
        ? Of<Row<Id>, 'answer'> | JsonBytes
        : Of<Row<Id>, 'answer'>

export type Handler<Id extends RouteId> = (asked: Asked<Id>) => Gives<Id> | Promise<Gives<Id>>

/** Routes that are built. One that is neither here nor marked `later` does not compile. */
export type BuiltRouteId = {
  [Id in RouteId]: Row<Id> extends { readonly later: string } | { readonly stream: 'websocket' } ? never : Id
}[RouteId]

export type Handlers = { readonly [Id in BuiltRouteId]: Handler<Id> }
