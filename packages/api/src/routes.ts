/**
 * The route table: every operation of the API as data, by what it is about in `routes/`; where each is found stands in `endpoints.ts`. The
 * server registers it, the OpenAPI document is printed from it and the client is typed by it, so the three cannot disagree.
 */
import type { RouteId } from './endpoints.ts'
import { buildRoutes } from './routes/builds.ts'
import { deviceRoutes } from './routes/devices.ts'
import { imageRoutes } from './routes/images.ts'
import { ingressRoutes } from './routes/ingresses.ts'
import { instanceRoutes } from './routes/instances.ts'
import { pushRoutes } from './routes/pushes.ts'
import type { Route } from './routes/route.ts'
import { serverRoutes } from './routes/server.ts'
import { snapshotRoutes } from './routes/snapshots.ts'
import { volumeRoutes } from './routes/volumes.ts'

export type { Route } from './routes/route.ts'

export const routes = {
  ...instanceRoutes,
  ...snapshotRoutes,
  ...imageRoutes,
  ...volumeRoutes,
  ...deviceRoutes,
  ...ingressRoutes,
  ...buildRoutes,
  ...pushRoutes,
  ...serverRoutes,
} as const satisfies Record<RouteId, Route>

export const ROUTE_IDS = Object.keys(routes) as readonly RouteId[]

/** The longest that `wait` waits; more is taken as this. */
export const WAIT_MAX_MS = 300_000
