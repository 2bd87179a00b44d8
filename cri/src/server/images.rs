//! The image service.

use decapod_proto::cri;
use decapod_proto::cri::image_service_server::ImageService;
use tonic::{Request, Response, Status};

use super::{Answers, Service, failed, pages};

#[tonic::async_trait]
impl ImageService for Service {
    async fn list_images(
        &self,
        request: Request<cri::ListImagesRequest>,
    ) -> Result<Response<cri::ListImagesResponse>, Status> {
        let filter = request.into_inner().filter;
        let images = self.runtime.image_list(filter.as_ref()).await.map_err(failed)?;
        Ok(Response::new(cri::ListImagesResponse { images }))
    }

    type StreamImagesStream = Answers<cri::StreamImagesResponse>;

    async fn stream_images(
        &self,
        request: Request<cri::StreamImagesRequest>,
    ) -> Result<Response<Self::StreamImagesStream>, Status> {
        let filter = request.into_inner().filter;
        let images = self.runtime.image_list(filter.as_ref()).await.map_err(failed)?;
        Ok(Response::new(pages(images, |images| cri::StreamImagesResponse { images })))
    }

    async fn image_status(
        &self,
        request: Request<cri::ImageStatusRequest>,
    ) -> Result<Response<cri::ImageStatusResponse>, Status> {
        let image = named(request.into_inner().image)?;
        // One that is not here is no error: the answer is empty.
        let image = self.runtime.image_status(&image).await.map_err(failed)?;
        Ok(Response::new(cri::ImageStatusResponse { image, ..Default::default() }))
    }

    async fn pull_image(
        &self,
        request: Request<cri::PullImageRequest>,
    ) -> Result<Response<cri::PullImageResponse>, Status> {
        let request = request.into_inner();
        let image = named(request.image)?;
        let image_ref = self.runtime.image_pull(&image, request.auth.as_ref()).await.map_err(failed)?;
        Ok(Response::new(cri::PullImageResponse { image_ref }))
    }

    async fn remove_image(
        &self,
        request: Request<cri::RemoveImageRequest>,
    ) -> Result<Response<cri::RemoveImageResponse>, Status> {
        let image = named(request.into_inner().image)?;
        self.runtime.image_remove(&image).await.map_err(failed)?;
        Ok(Response::new(cri::RemoveImageResponse {}))
    }

    async fn image_fs_info(
        &self,
        _: Request<cri::ImageFsInfoRequest>,
    ) -> Result<Response<cri::ImageFsInfoResponse>, Status> {
        Ok(Response::new(self.runtime.image_fs().await.map_err(failed)?))
    }
}

fn named(image: Option<cri::ImageSpec>) -> Result<cri::ImageSpec, Status> {
    image
        .filter(|image| !image.image.is_empty())
        .ok_or_else(|| Status::invalid_argument("invalid image: no image is named"))
}
